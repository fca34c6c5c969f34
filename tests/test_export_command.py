"""Promise: a finished run becomes a folder that a kind of device can run and check, or nothing."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_builder
import tensorrt_runtime
import torch
from host_cuda import HostCuda
from tiny_run import Tiny, advprune, refusal
from triton_config import parse_config

from deploy.bundle.check import check_integrity
from deploy.bundle.probe import probe
from deploy.runtime import load
from deploy.sealed import seal, unseal
from export import graph
from export.encodings import uint8_head
from pipeline.files import sha256

pytest_plugins = ["tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    """The shared run as a folder of its own, to write into."""
    folder = tmp_path / "harp v1.0"
    folder.mkdir()
    for entry in tiny.run.iterdir():
        (folder / entry.name).symlink_to(entry.resolve())
    return folder


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> tensorrt_builder.TensorRT:
    """TensorRT that builds and runs the engines of this network, for batches of up to eight."""
    builder: Any = tensorrt_builder.TensorRT("11.4.0", 0)
    runner = tensorrt_runtime.TensorRT("11.4.0")
    runner.shapes = {"images": (-1, 1, 8, 8), "logits": (-1, 10)}
    runner.answer = lambda images: images.reshape(len(images), -1)[:, :10] + 1
    inspector = SimpleNamespace(get_engine_information=lambda format: '{"Layers": []}')

    class Runtime(runner.Runtime):
        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            engine: Any = super().deserialize_cuda_engine(serialized_engine)
            engine.create_engine_inspector = lambda: inspector
            return engine

    for name in ("DataType", "TensorIOMode"):
        setattr(builder, name, getattr(runner, name))
    builder.Runtime = Runtime
    monkeypatch.setitem(sys.modules, "tensorrt", builder)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", HostCuda())
    return builder


def changed(run: Path, stage: str, change: Callable[[Path, dict[str, Any]], None]) -> None:
    """Give the run another artefact of a stage, with a manifest that fits it."""
    (entry,) = run.glob(f"[0-9][0-9]_{stage}")
    folder = shutil.copytree(entry.resolve(), run.parent / f"changed-{stage}")
    manifest = unseal((folder / "manifest.json").read_bytes())
    change(folder, manifest)
    (folder / "manifest.json").write_bytes(seal(manifest))
    entry.unlink()
    entry.symlink_to(folder)


def with_file(run: Path, name: str, content: Callable[[Path], bytes]) -> bytes:
    """The run as if its export had made one more file; what is in that."""
    made: list[bytes] = []

    def change(folder: Path, manifest: dict[str, Any]) -> None:
        made.append(content(folder))
        (folder / name).write_bytes(made[0])
        manifest["files"][name] = {"sha256": sha256(folder / name), "bytes": len(made[0])}

    changed(run, "export", change)
    return made[0]


def camera(folder: Path) -> bytes:
    return uint8_head(graph.load(folder / "model.int8.x86.onnx")).SerializeToString()


def exported(run: Path, name: str) -> bytes:
    return (run / "06_export" / name).read_bytes()


def files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def sums_hold(folder: Path) -> None:
    words = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(words, cwd=folder, check=True)
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in listed} == files(folder).keys() - {"SHA256SUMS"}


def told(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and samples of a bundle that holds, as far as this process knows its runtimes."""
    manifest = check_integrity(folder)
    probe(folder)
    sums_hold(folder)
    with np.load(folder / "golden.npz") as archive:
        return manifest, dict(archive)


# A folder for one kind of device ----------------------------------------------------------------


def test_onnx_runtime_gets_the_fast_form_and_what_to_check_it_by(run: Path) -> None:
    shown = advprune("export", run, "--target", "ort")
    assert (shown.code, shown.err) == (0, "")
    folder = run / "export-ort"
    manifest, samples = told(folder)
    assert (folder / "model.onnx").read_bytes() == exported(run, "model.int8.x86.onnx")
    assert manifest["models"] == {"int8": "model.onnx"} and "runtime" not in manifest
    assert manifest["metadata"]["precision"] == "int8"
    assert manifest["metadata"]["logits_by"].startswith("onnxruntime 1.")
    assert samples["images"].shape == (16, 1, 8, 8)
    images = samples["images"].astype(np.float32) / np.float32(255)
    assert np.array_equal(samples["logits_int8"], load(folder / "model.onnx").predict(images))
    assert (folder / "labels.txt").read_text().split() == [*"0123456789"]
    first, *lines, last = shown.out.splitlines()
    assert first == f"{folder}: int8 for ort"
    assert {line.split()[-1] for line in lines} == files(folder).keys()
    assert all(line.split()[1] in ("B", "kB", "MB") for line in lines)
    # What is to be typed next works as it stands, and notices a model that was exchanged.
    command, *words = shlex.split(last.removeprefix("next: "))
    assert command == "advprune" and advprune(*words).code == 0
    (folder / "model.onnx").write_bytes(exported(run, "model.onnx"))
    assert "not the file that was bundled" in refusal(advprune(*words), 65)


def test_a_run_for_cameras_gives_their_form_too(run: Path) -> None:
    content = with_file(run, "model.int8.camera.onnx", camera)
    assert advprune("export", run, "--target", "ort").code == 0
    manifest, samples = told(run / "export-ort")
    assert manifest["models"] == {"int8": "model.onnx", "int8-camera": "model.camera.onnx"}
    assert (run / "export-ort" / "model.camera.onnx").read_bytes() == content
    assert np.array_equal(samples["logits_int8"], samples["logits_int8-camera"])


def test_openvino_gets_the_form_that_it_runs_in_8_bits(run: Path) -> None:
    assert advprune("export", run, "--target", "openvino").code == 0
    folder = run / "export-openvino"
    manifest, samples = told(folder)
    assert (folder / "model.onnx").read_bytes() == exported(run, "model.int8.openvino.onnx")
    assert manifest["runtime"] == "openvino"
    assert manifest["metadata"]["logits_by"].startswith("openvino 20")
    images = samples["images"].astype(np.float32) / np.float32(255)
    engine = load(folder / "model.onnx", runtime="openvino")
    assert np.array_equal(samples["logits_int8-openvino"], engine.predict(images))


def test_without_openvino_the_logits_are_said_to_be_those_of_another(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "deploy.runtimes.openvino", raising=False)
    result = advprune("export", run, "--target", "openvino", "--json").json
    (note,) = result["notes"]
    assert "ONNX Runtime's" in note and "pip install openvino" in note
    manifest = json.loads((run / "export-openvino" / "manifest.json").read_text())
    assert manifest["runtime"] == "openvino"
    assert manifest["metadata"]["logits_by"].startswith("onnxruntime")


def test_tensorrt_gets_an_engine_that_is_built_here(
    run: Path, gpu: tensorrt_builder.TensorRT
) -> None:
    words = ["--max-batch", "8", "--optimal-batch", "4", "--version-compatible"]
    done = advprune("export", run, "--target", "tensorrt", *words, "--hardware-compatible")
    assert done.code == 0, done.err
    folder = run / "export-tensorrt"
    manifest, samples = told(folder)
    assert manifest["models"] == {"int8-tensorrt": "model.plan"}
    assert manifest["metadata"]["logits_by"] == "tensorrt"
    own = {"labels.txt", "golden.npz", "manifest.json", "SHA256SUMS"}
    assert files(folder).keys() - own == {"model.plan", "model.plan.json", "model.plan.timing"}
    assert gpu.calls["bytes"] == exported(run, "model.int8.onnx")
    assert gpu.calls["profile"] == ("images", (1, 1, 8, 8), (4, 1, 8, 8), (8, 1, 8, 8))
    card = json.loads((folder / "model.plan.json").read_text())
    assert card["gpu"] == "Test GPU" and card["batch"] == {"min": 1, "optimal": 4, "max": 8}
    assert card["version_compatible"] and card["hardware_compatible"]
    # The engine's own answers, which on this stand-in are pixels.
    pixels = samples["images"].reshape(16, -1)[:, :10].astype(np.float32) / np.float32(255)
    assert np.array_equal(samples["logits_int8-tensorrt"], pixels + 1)


def test_without_tensorrt_nothing_is_left_but_a_way_out(run: Path) -> None:
    message = refusal(advprune("export", run, "--target", "tensorrt"), 69)
    assert "pip install 'tensorrt>=10.3'" in message
    assert "build on the device, from " in message and "model.int8.onnx; " in message
    assert "--target triton" in message
    assert not list(run.glob("*export-*"))


# Triton -----------------------------------------------------------------------------------------


def test_triton_serves_onnx_on_cpus_where_no_engine_can_be_built(run: Path) -> None:
    result = advprune("export", run, "--target", "triton", "--max-batch", "32", "--json").json
    folder = run / "export-triton"
    sums_hold(folder)
    assert result["files"] == files(folder)
    assert "no engine can be built here: gpu: torch" in result["notes"][0]
    assert result["next"] == f"tritonserver --model-repository='{folder}'"
    model = folder / "harp_v1_0"
    assert (model / "1/model.onnx").read_bytes() == exported(run, "model.int8.x86.onnx")
    assert (model / "labels.txt").read_text().split() == [*"0123456789"]
    config = parse_config((model / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 32)
    entry, answer = load_ends(model / "1/model.onnx")
    assert (config.input[0].name, config.output[0].name) == (entry, answer)
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([1, 8, 8], [10])


def load_ends(path: Path) -> tuple[str, str]:
    body = graph.load(path).graph
    return body.input[0].name, body.output[0].name


def test_triton_serves_the_form_for_cameras_beside_it(run: Path) -> None:
    content = with_file(run, "model.int8.camera.onnx", camera)
    assert advprune("export", run, "--target", "triton").code == 0
    models = {path.parent.name: path for path in run.glob("export-triton/*/config.pbtxt")}
    assert models.keys() == {"harp_v1_0", "harp_v1_0-camera"}
    config = parse_config(models["harp_v1_0-camera"].read_text())
    assert (config.input[0].data_type, list(config.input[0].dims)) == (2, [8, 8, 1])  # TYPE_UINT8
    assert (models["harp_v1_0-camera"].parent / "1/model.onnx").read_bytes() == content


def test_triton_serves_an_engine_where_one_can_be_built(
    run: Path, gpu: tensorrt_builder.TensorRT
) -> None:
    words = ["--max-batch", "8", "--version-compatible", "--json"]
    result = advprune("export", run, "--target", "triton", *words).json
    model = run / "export-triton" / "harp_v1_0"
    assert (model / "1/model.plan").read_bytes() == b"engine"
    assert files(model).keys() == {"config.pbtxt", "labels.txt", "1/model.plan"}
    config = parse_config((model / "config.pbtxt").read_text())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert result["notes"] == []
    assert result["next"].endswith("--backend-config=tensorrt,version-compatible=true")


def test_triton_does_not_forget_what_only_an_engine_has(run: Path) -> None:
    for words in (["--optimal-batch", "8"], ["--version-compatible"], ["--hardware-compatible"]):
        assert "tensorrt" in refusal(advprune("export", run, "--target", "triton", *words), 69)
    assert not list(run.glob("*export-*"))


# Which graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_the_float_graph_can_be_had_instead(run: Path, target: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "place"
    words = ["--precision", "fp32", "--out", out, "--json"]
    result = advprune("export", run, "--target", target, *words).json
    assert (result["folder"], result["precision"]) == (str(out), "fp32")
    told(out)
    assert (out / "model.onnx").read_bytes() == exported(run, "model.onnx")
    assert not (run / f"export-{target}").exists()


def test_halves_are_given_where_the_run_has_them(run: Path) -> None:
    words = ["export", run, "--target", "ort", "--precision", "fp16"]
    assert "has no model.fp16.onnx; run again with --fp16" in refusal(advprune(*words), 66)
    content = with_file(run, "model.fp16.onnx", lambda f: (f / "model.onnx").read_bytes())
    assert advprune(*words).code == 0
    manifest, _ = told(run / "export-ort")
    assert manifest["models"] == {"fp16": "model.onnx"}
    assert (run / "export-ort" / "model.onnx").read_bytes() == content


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "--target"),
        ("--target tflite", "'tflite' is not known; use tensorrt, ort, openvino, triton"),
        ("--target ort --precision int4", "'int4' is not known; use int8, fp32, fp16"),
        ("--target tensorrt --max-batch 0", "--max-batch"),
        ("--target tensorrt --max-batch 4294967296", "--max-batch"),
        ("--target triton --optimal-batch 200", "--optimal-batch 200 is above --max-batch 128"),
        ("--target ort --version-compatible", "--version-compatible is for --target tensorrt"),
        ("--target openvino --hardware-compatible", "--hardware-compatible is for --target tens"),
        ("--target ort --max-batch 4", "--max-batch is for --target tensorrt or triton"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_run_is_looked_at(
    words: str, says: str, tmp_path: Path
) -> None:
    assert says in refusal(advprune("export", tmp_path / "none", *words.split()), 2)
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    message = refusal(advprune("export", tmp_path, "--target", "ort"), 66)
    assert "not a finished run" in message


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "triton"])
def test_a_folder_that_exists_is_left_as_it_is(run: Path, tmp_path: Path, target: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    words = ["export", run, "--target", target, "--out", mine]
    assert "mine: exists already" in refusal(advprune(*words), 73)
    assert files(mine) == {"file": 4}


@pytest.mark.parametrize("target", ["ort", "openvino", "triton"])
def test_a_file_that_was_changed_is_not_exported(run: Path, target: str) -> None:
    def change(folder: Path, manifest: dict[str, Any]) -> None:
        for path in folder.glob("*.onnx"):
            path.write_bytes(path.read_bytes() + b"\0")

    changed(run, "export", change)
    message = refusal(advprune("export", run, "--target", target), 65)
    assert "missing or changed since it was made" in message
    assert not list(run.glob("*export-*"))


def test_what_the_gate_stopped_is_not_shipped_by_another_door(run: Path) -> None:
    def fail(folder: Path, manifest: dict[str, Any]) -> None:
        manifest["metrics"]["verdict"] = "FAIL"

    changed(run, "gate", fail)
    message = refusal(advprune("export", run, "--target", "ort"), 10)
    assert "the gate failed" in message and "--precision fp32" in message
    assert not (run / "export-ort").exists()
    # It was 8 bits that failed.
    assert advprune("export", run, "--target", "ort", "--precision", "fp32").code == 0
