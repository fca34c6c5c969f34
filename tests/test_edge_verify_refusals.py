"""Promise: a bundle that is not as it was shipped is refused unread, and another model is told."""

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_bundle import (
    FILES,
    GOLDEN,
    change_arrays,
    change_manifest,
    contents,
    put_arrays,
    seal,
    write_bundle,
)
from exported_net import CLASSES, SHAPE, Exported

from deploy import edge_verify
from export import graph

pytest_plugins = ["export_fixtures"]

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def shipped(varied: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("shipped") / "net", varied)


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "build_engine", types.ModuleType("not yet imported"))
    return Path(shutil.copytree(shipped, tmp_path / "net"))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Verifies a bundle, holds the exit code, and gives what was said of it."""

    def verify(bundle: Path, code: int, *arguments: str) -> str:
        given = ["--bundle", str(bundle), "--runtime", "ort", "--calls", "1", *arguments]
        assert edge_verify.main(given) == code
        return capsys.readouterr().err

    return verify


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of a bundle was read by more than a digest."""
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    watch(json, "loads")
    watch(np, "load")
    watch(importlib, "import_module")
    watch(edge_verify, "_import_builder")
    return seen


def test_a_sound_bundle_passes(bundle: Path, told: Callable[..., str], parsed: list[str]):
    """So that what the other tests find is what they did to it."""
    assert told(bundle, 0) == ""
    assert set(parsed) == {"loads", "load", "import_module", "_import_builder"}


def test_one_bit_anywhere_is_refused_before_anything_is_parsed(
    bundle: Path, told: Callable[..., str], parsed: list[str]
):
    rng = np.random.default_rng(0)
    for name, path in contents(bundle).items():
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        assert "fetch the bundle again" in told(bundle, 65), name
        path.write_bytes(content)
    assert not parsed and not bundle.with_name("net.edge").exists()
    assert told(bundle, 0) == ""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bundle: (bundle / "more.txt").write_text(""),
        lambda bundle: (bundle / "triton" / "net" / "more").write_text(""),
        lambda bundle: (bundle / "empty").mkdir(),
        lambda bundle: (bundle / "__pycache__").mkdir(),
        lambda bundle: os.mkfifo(bundle / "pipe"),
        lambda bundle: (bundle / "labels.txt").unlink(),
        lambda bundle: (bundle / "labels.txt").rename(bundle / "Labels.txt"),
        lambda bundle: shutil.rmtree(bundle / "triton"),
        lambda bundle: (bundle / "manifest.json.sig").mkdir(),
    ],
    ids=["extra", "nested", "folder", "cache", "pipe", "missing", "renamed", "tree", "signature"],
)
def test_exactly_the_listed_files(
    bundle: Path, told: Callable[..., str], parsed: list[str], spoil: Callable[[Path], object]
):
    spoil(bundle)
    assert "missing, no plain file, or not listed in SHA256SUMS" in told(bundle, 65)
    assert not parsed


def test_links_are_no_files(
    bundle: Path, told: Callable[..., str], parsed: list[str], tmp_path: Path
):
    (bundle / "labels.txt").rename(tmp_path / "labels.txt")
    (bundle / "labels.txt").symlink_to(tmp_path / "labels.txt")
    assert "labels.txt missing, no plain file" in told(bundle, 65)
    (bundle / "labels.txt").unlink()
    (tmp_path / "labels.txt").rename(bundle / "labels.txt")
    (bundle / "triton").rename(tmp_path / "triton")
    (bundle / "triton").symlink_to(tmp_path / "triton")
    assert "triton" in told(bundle, 65)
    assert not parsed


@pytest.mark.parametrize(
    "line",
    ["", "0" * 64 + "  ../labels.txt", "0" * 64 + " *labels.txt", "0" * 64 + "  /etc/passwd", "é"],
)
def test_sums_are_digests_and_names(
    bundle: Path, told: Callable[..., str], parsed: list[str], line: str
):
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write(f"{line}\n")
    assert "SHA256SUMS: not digests and names, each once" in told(bundle, 65)
    (bundle / "SHA256SUMS").unlink()
    assert "no bundle, it has no SHA256SUMS; give --bundle" in told(bundle, 66)
    assert "no bundle" in told(bundle.with_name("absent"), 66)
    assert not parsed


def test_a_signature_may_lie_there(bundle: Path, told: Callable[..., str]):
    (bundle / "manifest.json.sig").write_bytes(b"signature")
    assert told(bundle, 0) == ""


def test_manifest_and_sums_must_agree(bundle: Path, told: Callable[..., str], parsed: list[str]):
    """Whoever changes a file and SHA256SUMS, but not the signed manifest, gets no further."""
    manifest = (bundle / "manifest.json").read_bytes()
    (bundle / "labels.txt").write_text("".join(f"other {k}\n" for k in range(CLASSES)))
    seal(bundle)
    changed = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(manifest)
    sums = bundle / "SHA256SUMS"
    new, old = (hashlib.sha256(content).hexdigest() for content in (changed, manifest))
    sums.write_text(sums.read_text().replace(new, old))
    parsed.clear()  # of what sealing read
    assert "manifest.json and SHA256SUMS disagree" in told(bundle, 65)
    assert parsed == ["loads"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(schema=1), "schema 1"),
        (lambda m: m.pop("protocol"), "KeyError"),
        (lambda m: m["input"].update(type="uint8"), "images of .'uint8', 'NCHW'"),
        (lambda m: m["input"].update(high=255.0), "images of"),
        (lambda m: m["input"].update(shape=[3, 12, 13]), r"uint8 \(16, 3, 12, 12\) where"),
        (lambda m: m["protocol"]["attacks"].append({"name": "pgd"}), "attacks"),
        (lambda m: m["models"].pop("int8"), "has no model 'int8'"),
        (lambda m: m["models"].update(int8="../net/model.onnx"), "not the file that was shipped"),
        (lambda m: m["models"].update(other="model.onnx"), "logits_other"),
        (lambda m: m.update(golden="labels.txt"), "not a bundle of schema 2"),
        (lambda m: m.update(golden=3), "not a bundle of schema 2"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    bundle: Path, told: Callable[..., str], change: Change, match: str
):
    change_manifest(bundle, change)
    assert re.search(match, told(bundle, 65))


def test_a_manifest_that_is_no_table_is_refused(bundle: Path, told: Callable[..., str]):
    text = (bundle / "manifest.json").read_text()
    for content in ("[]", "{", "[" * 100_000, text.replace("{", '{"name": "twice",', 1)):
        (bundle / "manifest.json").write_text(content)
        old = [x for x in (bundle / "SHA256SUMS").read_text().splitlines() if "manifest" not in x]
        digest = hashlib.sha256(content.encode()).hexdigest()
        lines = [*old, f"{digest}  manifest.json"]
        (bundle / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))
        assert "not a bundle of schema 2" in told(bundle, 65)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("golden.npz", "images", np.zeros((GOLDEN - 1, *SHAPE), np.uint8)),
        ("golden.npz", "images", np.zeros((GOLDEN, *SHAPE), np.float32)),
        ("golden.npz", "logits_int8", np.zeros((GOLDEN, CLASSES - 1), np.float32)),
        ("golden.npz", "logits_int8", np.zeros((GOLDEN, CLASSES))),
        ("golden.npz", "logits_fp32", np.full((GOLDEN, CLASSES), np.nan, np.float32)),
        ("replay.npz", "clean", np.zeros((63, *SHAPE), np.uint8)),
        ("replay.npz", "adversarial", np.zeros((64, *SHAPE), np.uint8)),
        ("replay.npz", "adversarial", np.full((64, *SHAPE), 1.1, np.float32)),
        ("replay.npz", "adversarial", np.full((64, *SHAPE), np.nan, np.float32)),
        ("replay.npz", "labels", np.zeros(64, np.int32)),
        ("replay.npz", "labels", np.full(64, CLASSES, np.int64)),
        ("replay.npz", "labels", np.zeros(0, np.int64)),
        ("replay.npz", "labels", np.int64(3)),
        ("replay.npz", "clean_logits_int8", np.full((64, CLASSES), np.inf, np.float32)),
        ("replay.npz", "adversarial_logits_fp32", np.zeros((64, 1), np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    bundle: Path, told: Callable[..., str], file: str, name: str, value: Any
):
    change_arrays(bundle / file, lambda arrays: arrays.update({name: value}))
    assert "not a bundle of schema 2" in told(bundle, 65)


# Text after the array's description, which numpy cannot take apart; and no array at all.
@pytest.mark.parametrize("damage", [(b"), }", b"), {"), (b"NUMPY", b"BUMPY")])
def test_arrays_that_numpy_cannot_read_are_refused(
    bundle: Path, told: Callable[..., str], damage: tuple[bytes, bytes]
):
    with zipfile.ZipFile(bundle / "golden.npz") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(bundle / "golden.npz", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(*damage))
    seal(bundle)
    assert "not a bundle of schema 2" in told(bundle, 65)


def test_nothing_is_unpickled(bundle: Path, told: Callable[..., str]):
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["images"] = np.array([print] * GOLDEN, dtype=object)
    put_arrays(bundle / "golden.npz", arrays)
    seal(bundle)
    assert "allow_pickle=False" in told(bundle, 65)


def record_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle.with_name("net.edge") / "edge.json").read_text())


def test_golden_logits_of_another_model_fail(bundle: Path, told: Callable[..., str]):
    assert told(bundle, 0) == ""
    edge = bundle.with_name("net.edge")
    assert (edge / "edge.int8.json").exists()

    def shift(arrays: dict[str, Any]) -> None:
        arrays["logits_int8"] += np.float32(0.03) * np.abs(arrays["logits_int8"]).max()

    change_arrays(bundle / "golden.npz", shift)
    assert "failure: model.int8.x86.onnx: golden logits are off by" in told(bundle, 10)
    assert len(record_of(bundle)["failures"]) == 1
    # What an earlier run found must not be taken for what this one did.
    assert not (edge / "edge.int8.json").exists()


def test_another_class_within_the_tolerance_fails(bundle: Path, told: Callable[..., str]):
    with np.load(bundle / "golden.npz") as archive:
        logits = archive["logits_fp32"].copy()
    ordered = np.sort(logits, axis=1)
    row = int((ordered[:, -1] - ordered[:, -2]).argmin())
    first, second = logits[row].argsort()[[-1, -2]]
    logits[row, first], logits[row, second] = logits[row, second], logits[row, first]
    gap = abs(float(logits[row, first] - logits[row, second]))
    assert gap < 0.02 * np.abs(logits).max()
    change_arrays(bundle / "golden.npz", lambda arrays: arrays.update(logits_fp32=logits))
    said = told(bundle, 10)
    assert said == "failure: model.onnx: another class wins on a golden image\n"


@pytest.mark.parametrize(
    ("kind", "images", "code", "word"),
    [
        ("clean", 1, 0, "warning"),
        ("adversarial", 1, 0, "warning"),
        ("clean", 2, 10, "failure"),
        ("adversarial", 2, 10, "failure"),
    ],
)
def test_classes_that_differ_are_told(
    bundle: Path, told: Callable[..., str], kind: str, images: int, code: int, word: str
):
    """One of 64 images is between the two thresholds, two are below both."""

    def turn(arrays: dict[str, Any]) -> None:
        arrays[f"{kind}_logits_int8"][:images] *= -1

    change_arrays(bundle / "replay.npz", turn)
    said = told(bundle, code)
    name = {"clean": "clean", "adversarial": "replay"}[kind]
    share = f"{100 * (64 - images) / 64:.2f} % of the {name} images, below"
    assert said.startswith(f"{word}: model.int8.x86.onnx: the stored class wins on {share}")
    record = record_of(bundle)
    assert record["engines"]["int8"]["agreement"][name] == 1 - images / 64
    assert len(record[f"{word}s"]) == len(record["failures"] + record["warnings"]) == 1


def put_model(bundle: Path, name: str, change: Callable[[Any], object]) -> None:
    model = graph.load(bundle / FILES[name])
    change(model)
    graph.save(model, bundle / FILES[name])
    seal(bundle)


def test_logits_that_are_not_finite_are_refused(bundle: Path, told: Callable[..., str]):
    def spoil(model: Any) -> None:
        constants = graph.constants(model)
        name = next(key for key, value in constants.items() if value.shape == (CLASSES,))
        graph.put_constants(model, {name: constants[name] * np.float32(np.nan)})

    put_model(bundle, "fp32", spoil)
    assert "model.onnx: gave logits that are not finite" in told(bundle, 65)
    assert not contents(bundle.with_name("net.edge"))


def test_a_model_that_does_not_run_here_is_refused(bundle: Path, told: Callable[..., str]):
    (bundle / FILES["fp32"]).write_bytes(b"no model")
    seal(bundle)
    assert re.match(r"model.onnx: onnxruntime [\d.]+ does not take it \(", told(bundle, 78))
    shutil.copyfile(bundle / FILES["int8"], bundle / FILES["fp32"])
    put_model(bundle, "fp32", lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop())
    assert "model.onnx: " in told(bundle, 78)


def test_the_slower_form_is_taken_where_the_faster_is_not_known(
    bundle: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    """Older releases of onnxruntime lack a kernel of the x86 form; both are the same function."""
    monkeypatch.setattr(edge_verify.platform, "machine", lambda: "x86_64")
    (bundle / FILES["int8"]).write_bytes(b"no model")
    seal(bundle)
    assert told(bundle, 0) == ""
    record = record_of(bundle)
    assert record["engines"]["int8"]["file"] == FILES["int8-tensorrt"]
    assert "the slower form of 8 bits: model.int8.x86.onnx: onnxruntime" in record["why"]
    (bundle / FILES["int8-tensorrt"]).write_bytes(b"no model")
    seal(bundle)
    assert "model.int8.onnx: onnxruntime" in told(bundle, 78)


def test_other_processors_run_the_other_form(
    bundle: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(edge_verify.platform, "machine", lambda: "aarch64")
    assert told(bundle, 0) == ""
    record = record_of(bundle)
    assert record["engines"]["int8"]["model"] == "int8-tensorrt"
    assert record["where"].startswith("linux/aarch64")


def test_what_runs_must_be_what_was_asked_for(
    bundle: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    class Elsewhere:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return ["AzureExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Elsewhere)
    said = told(bundle, 78)
    assert "asked for CPUExecutionProvider, AzureExecutionProvider, CPU" in said


def test_what_is_missing_is_named(
    bundle: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = told(bundle, 69)
    assert "onnxruntime cannot be imported" in said and "pip install onnxruntime" in said
    assert said.count("\n") == 1


def test_nothing_is_written_where_it_must_not_be(bundle: Path, told: Callable[..., str]):
    for inside in (bundle, bundle / "triton" / "found"):
        assert "stays as it was shipped" in told(bundle, 2, "--out", str(inside))
    bundle.with_name("net.edge").write_text("in the way")
    assert "give --out a folder of your own" in told(bundle, 73)


@pytest.mark.parametrize("given", [["--calls", "0"], ["--threads", "-1"], ["--runtime", "cuda"]])
def test_wrong_usage_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        edge_verify.main(given)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err
