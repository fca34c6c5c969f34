"""A bundle is what was measured, byte for byte and logit for logit, or it is refused."""

import hashlib
import json
import shutil
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import (
    CLASSES,
    COUNT,
    LABELS,
    METADATA,
    RECORDING,
    SAMPLES,
    WEIGHTS,
    contents,
    linear,
    logits_of,
    make_bundle,
    reseal,
)
from onnx import helper

from deploy.bundle.check import check_bundle, check_integrity
from deploy.bundle.probe import probe, runs_on_cpu
from deploy.bundle.write import write_bundle
from deploy.errors import DeployError
from deploy.recording import arrays_of

OWN = {"manifest.json", "SHA256SUMS"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


def refused(check: Any, *arguments: Any, code: int = 65) -> str:
    with pytest.raises(DeployError) as refusal:
        check(*arguments)
    assert refusal.value.exit_code == code
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


def test_a_bundle_holds_what_was_measured(bundle: Path) -> None:
    manifest = check_bundle(bundle)
    assert (manifest["schema"], manifest["name"], manifest["release"]) == (2, "linear", 3)
    assert manifest["metadata"] == METADATA
    assert manifest["models"] == {"fp32": "model.onnx", "int8": "model.int8.x86.onnx"}
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == names - OWN
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert (entry.bytes, entry.executable) == (len(content), name.endswith(".py"))
    assert (bundle / "labels.txt").read_text().splitlines() == LABELS
    assert (bundle / "triton/linear/1/model.onnx").read_bytes() == linear(WEIGHTS)
    mode = (bundle / "edge_verify.py").stat().st_mode
    assert mode & stat.S_IXUSR and not (bundle / "labels.txt").stat().st_mode & stat.S_IXUSR


def test_expected_answers_come_with_the_images(bundle: Path) -> None:
    golden, replay = arrays_of(bundle / "golden.npz"), arrays_of(bundle / "replay.npz")
    assert np.array_equal(golden["images"], SAMPLES)
    assert np.array_equal(golden["logits_int8"], logits_of(SAMPLES))
    for kind in ("clean", "adversarial"):
        images = getattr(RECORDING, kind)
        assert np.array_equal(replay[kind], images) and replay[kind].dtype == images.dtype
        assert np.array_equal(replay[f"{kind}_logits_fp32"], logits_of(images))
    assert np.array_equal(replay["labels"], RECORDING.labels)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (attack,) = manifest["protocol"]["attacks"]
    digest = hashlib.sha256(replay["adversarial"].tobytes()).hexdigest()
    assert attack == {"name": "replay", "sha256": digest}


def test_sha256sum_agrees(bundle: Path) -> None:
    words = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(words, cwd=bundle, check=True)
    listed = {line[66:] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}


def test_equal_content_gives_equal_bytes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    write_bundle(tmp_path / "later", contents(tmp_path))
    for path in bundle.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "later" / path.relative_to(bundle)).read_bytes()


def test_a_flipped_bit_is_refused(bundle: Path) -> None:
    random = np.random.default_rng(2)
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        content = path.read_bytes()
        flips = random.integers(0, 8 * len(content), 25)
        # Every bit of the digests would take long; a stride of 29 meets each bit of a byte.
        for flip in range(0, 8 * len(content), 29) if path.name == "SHA256SUMS" else flips:
            changed = bytearray(content)
            changed[flip // 8] ^= 1 << flip % 8
            path.write_bytes(changed)
            refused(check_integrity, bundle)
        path.write_bytes(content)
    check_integrity(bundle)


def test_added_removed_and_renamed_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    names = [p.relative_to(bundle).as_posix() for p in sorted(bundle.rglob("*")) if p.is_file()]
    for number, name in enumerate(names):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(bundle, copy)
        (copy / name).rename(copy / f"{name}.old")
        code = 66 if name in OWN else 65
        assert Path(name).name in refused(check_integrity, copy, code=code)
        (copy / f"{name}.old").unlink()
        refused(check_integrity, copy, code=code)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 3}, "schema 3"),
        ({"schema": 1}, "schema 1"),
        ({"models": {"int8": "../model.onnx"}}, "not among its files"),
        ({"models": {"int8": "/etc/passwd"}}, "not among its files"),
        ({"models": {}}, "0 models"),
        ({"models": ["model.onnx"]}, "models"),
        ({"models": {"int8": ["model.onnx"]}}, "unhashable"),
        ({"files": {}}, "not among its files"),
        ({"files": {"a": 3}}, "int"),
        ({"release": -1}, "release -1"),
        ({"release": True}, "release True"),
        ({"release": "3"}, "release '3'"),
        ({"labels": "other.txt"}, "not among its files"),
        ({"golden": 3}, "golden 3"),
        ({"replay": "other.npz"}, "replay"),
        ({"runtime": ["ort"]}, "runtime"),
        ({"protocol": "x"}, "protocol"),
        ({"more": 1}, "more"),
        ({"input": {"shape": [1, 8]}}, "input of shape"),
        ({"input": {}}, "input of shape"),
    ],
)
def test_a_manifest_that_is_off_is_refused(bundle: Path, change: dict[str, Any], said: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text()) | change
    reseal(bundle, "manifest.json", json.dumps(manifest).encode())
    assert said in refused(check_integrity, bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}'])
def test_a_manifest_that_is_none_is_refused(bundle: Path, content: bytes) -> None:
    reseal(bundle, "manifest.json", content)
    refused(check_integrity, bundle)


def test_an_older_release_is_refused(bundle: Path) -> None:
    assert check_integrity(bundle, release=3)["release"] == 3
    assert "release 3 of linear" in refused(check_integrity, bundle, None, 4, code=78)


# What the models say ----------------------------------------------------------------------------


def test_the_models_must_still_say_what_they_said(bundle: Path) -> None:
    reseal(bundle, "model.int8.x86.onnx", linear(WEIGHTS * np.float32(1.001)))
    check_bundle(bundle)
    reseal(bundle, "model.int8.x86.onnx", linear(WEIGHTS * np.float32(1.1)))
    message = refused(check_bundle, bundle)
    assert "model.int8.x86.onnx: on the golden images logits are off by" in message
    reseal(bundle, "model.int8.x86.onnx", linear(WEIGHTS[:, :9]))
    assert "model.int8.x86.onnx" in refused(check_bundle, bundle)


def test_a_model_of_other_images_or_classes_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    other = manifest | {"input": manifest["input"] | {"shape": [3, 8, 8]}}
    reseal(bundle, "manifest.json", json.dumps(other).encode())
    assert "takes ((1, 8, 8), 10), said is ((3, 8, 8), 10)" in refused(probe, bundle)
    reseal(bundle, "manifest.json", json.dumps(manifest).encode())
    reseal(bundle, "labels.txt", b"one\n")
    assert "said is ((1, 8, 8), 1)" in refused(probe, bundle)


def test_another_class_is_refused_however_close(tmp_path: Path) -> None:
    given = contents(tmp_path)
    logits = logits_of(SAMPLES)
    second, first = np.sort(logits, axis=1)[:, -2:].T
    row = int((first - second).argmin())
    logits[row, logits[row] == second[row]] = first[row] + np.float32(0.001)
    assert np.abs(logits - logits_of(SAMPLES)).max() < 0.02 * np.abs(logits).max()
    write_bundle(tmp_path / "bundle", replace(given, logits={**given.logits, "fp32": logits}))
    with pytest.raises(DeployError, match="another class wins"):
        probe(tmp_path / "bundle")


def test_another_function_on_the_replay_is_refused(tmp_path: Path) -> None:
    given = contents(tmp_path)
    assert given.replay is not None
    turned = {name: np.roll(x, 1, axis=1) for name, x in given.replay.adversarial.items()}
    write_bundle(
        tmp_path / "bundle", replace(given, replay=replace(given.replay, adversarial=turned))
    )
    with pytest.raises(DeployError, match=r"on 100\.0 % of the adversarial images of the replay"):
        probe(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("models", "runtime", "limited"),
    [
        ({"int8": "model.onnx"}, {}, True),
        ({"int8": "model.onnx"}, {"runtime": "openvino"}, True),
        ({"int8": "model.onnx"}, {"runtime": "ort-cuda"}, False),
        ({"int8": "model.onnx", "int8-tensorrt": "model.plan"}, {}, False),
    ],
)
def test_memory_is_limited_where_no_driver_needs_it(
    models: dict[str, str], runtime: dict[str, str], limited: bool
) -> None:
    assert runs_on_cpu({"models": models, **runtime}) is limited


def test_a_graph_that_asks_for_too_much_memory_is_refused(bundle: Path) -> None:
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[2**36])
    huge = helper.make_node("ConstantOfShape", ["shape"], ["huge"])
    row = helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=1)
    model = onnx.load_model_from_string(linear(WEIGHTS, [shape, huge, row]))
    model.graph.node[1].output[0] = "product"
    model.graph.node.append(helper.make_node("Add", ["product", "top"], ["logits"]))
    reseal(bundle, "model.onnx", model.SerializeToString())
    assert "asks for 256.0 GiB" in refused(check_bundle, bundle)


def test_parts_that_do_not_parse_are_refused(bundle: Path) -> None:
    for name in ("golden.npz", "replay.npz"):
        before = (bundle / name).read_bytes()
        for content in (b"", b"PK\x03\x04", b"\x80\x04N."):
            reseal(bundle, name, content)
            assert name in refused(probe, bundle)
        reseal(bundle, name, before)
    probe(bundle)


# Writing ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "too few labels": ({"labels": LABELS[:-1]}, 65),
    "a label of two lines": ({"labels": ["a\nb", *LABELS[1:]]}, 65),
    "no threat": ({"metadata": {k: METADATA[k] for k in ("model", "sparsity")}}, 65),
    "metadata that is no JSON": ({"metadata": METADATA | {"x": float("nan")}}, 65),
    "too few samples": ({"samples": SAMPLES[:15]}, 65),
    "samples of another type": ({"samples": SAMPLES.astype(np.float32)}, 65),
    "logits of one model": ({"logits": {"int8": np.zeros((16, CLASSES), np.float32)}}, 65),
    "logits of another type": ({"logits": dict.fromkeys(("int8", "fp32"), np.zeros((16, 10)))}, 65),
    "logits that are no numbers": (
        {"logits": dict.fromkeys(("int8", "fp32"), np.full((16, 10), np.nan, np.float32))},
        65,
    ),
    "no models": ({"models": {}}, 65),
    "a model that is not there": ({"models": dict.fromkeys(("int8", "fp32"), Path("no.onnx"))}, 66),
    "two files of one name": ({"beside": {"model.onnx": b""}}, 65),
    "a file of the bundle's own": ({"beside": {"manifest.json": b""}}, 65),
    "a name that leads out": ({"beside": {"../x": b""}}, 65),
    "a hidden name": ({"beside": {".git": b""}}, 65),
    "names that differ in case": ({"beside": {"Model.onnx": b""}}, 65),
    "a release below zero": ({"release": -1}, 65),
}


@pytest.mark.parametrize("what", WRONG)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, what: str) -> None:
    change, code = WRONG[what]
    refused(write_bundle, tmp_path / "bundle", contents(tmp_path, **change), code=code)
    assert not (tmp_path / "bundle").exists()


def test_a_replay_must_fit_too(tmp_path: Path) -> None:
    given = contents(tmp_path)
    assert given.replay is not None
    short = {name: value[:-1] for name, value in given.replay.clean.items()}
    message = refused(
        write_bundle,
        tmp_path / "bundle",
        replace(given, replay=replace(given.replay, clean=short)),
    )
    assert f"float32 ({COUNT}, {CLASSES})" in message


def test_an_existing_folder_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    refused(write_bundle, bundle, contents(tmp_path), code=73)
    check_integrity(bundle)


def test_no_bundle_is_another_refusal(tmp_path: Path) -> None:
    refused(check_bundle, tmp_path / "absent", code=66)
    refused(check_bundle, tmp_path, code=66)
