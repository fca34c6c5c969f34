"""A bundle is what was measured, byte for byte and logit for logit, or it is refused."""

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deploy.bundle import check_bundle, write_bundle
from deploy.errors import DeployError

LABELS = [f"digit {i}" for i in range(10)]
METADATA = {
    "model": {"model": "digits_resnet", "classes": 10},
    "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
    "sparsity": 0.99,
    "robust_accuracy": {"int8": {"value": 0.885, "low": 0.851, "high": 0.914}},
}
SAMPLES = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
DRIFT = {"fp32": 0.0, "int8": 0.0}
RUNTIMES: list[str | None] = []


class Engine:
    """Stands for a runtime: a linear model whose bytes are in the file."""

    def __init__(self, path: Path, runtime: str | None = None) -> None:
        RUNTIMES.append(runtime)
        self.drift = DRIFT[path.name.split(".")[1]]
        self.weights = np.frombuffer(path.read_bytes(), np.float32).reshape(64, 10)

    def predict(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        assert images.max() <= 1
        return (images.reshape(len(images), -1) @ self.weights + self.drift).astype(np.float32)


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("deploy.runtime")
    stub.__dict__["load"] = Engine
    monkeypatch.setitem(sys.modules, "deploy.runtime", stub)


def pieces(folder: Path) -> dict[str, Any]:
    models = {name: folder / f"model.{name}.onnx" for name in ("int8", "fp32")}
    for path in models.values():
        path.write_bytes(WEIGHTS.tobytes())
    logits = (SAMPLES.reshape(16, -1).astype(np.float32) / 255) @ WEIGHTS
    return {
        "models": models,
        "labels": LABELS,
        "metadata": METADATA,
        "samples": SAMPLES,
        "logits": dict.fromkeys(models, logits),
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", **pieces(tmp_path))
    return tmp_path / "bundle"


def refused(folder: Path) -> str:
    with pytest.raises(DeployError) as refusal:
        check_bundle(folder)
    assert refusal.value.exit_code == 65
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Change a file and everything that vouches for it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / name).write_bytes(content)
    if name in manifest["files"]:
        manifest["files"][name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    listed = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in listed]
    (folder / "SHA256SUMS").write_text("".join(sums))


def test_a_bundle_holds_what_was_measured(bundle: Path) -> None:
    manifest = check_bundle(bundle)
    assert manifest["schema"] == 1
    assert manifest["metadata"] == METADATA
    names = {"model.int8.onnx", "model.fp32.onnx", "labels.txt", "samples.npz"}
    assert set(manifest["files"]) == names
    assert {path.name for path in bundle.iterdir()} == names | {"manifest.json", "SHA256SUMS"}
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert (bundle / "labels.txt").read_text().splitlines() == LABELS
    with np.load(bundle / "samples.npz") as archive:
        assert np.array_equal(archive["images"], SAMPLES)
        assert archive["images"].dtype == np.uint8
        assert archive["logits_int8"].dtype == np.float32
    sums = (bundle / "SHA256SUMS").read_text().splitlines()
    manifest_digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert f"{manifest_digest}  manifest.json" in sums


def test_a_bundle_brings_what_its_models_need_and_says_what_runs_them(tmp_path: Path) -> None:
    card = tmp_path / "model.int8.onnx.json"
    card.write_text("{}")
    RUNTIMES.clear()
    write_bundle(tmp_path / "bundle", **pieces(tmp_path), beside=[card], runtime="openvino")
    manifest = check_bundle(tmp_path / "bundle")
    assert RUNTIMES == ["openvino"] * 2
    assert card.name in manifest["files"] and card.name not in manifest["models"].values()
    manifest["runtime"] = ["openvino"]
    rewrite(tmp_path / "bundle", "manifest.json", json.dumps(manifest).encode())
    assert "not a bundle of this schema" in refused(tmp_path / "bundle")
    write_bundle(tmp_path / "plain", **pieces(tmp_path))
    assert check_bundle(tmp_path / "plain").keys() == manifest.keys() - {"runtime"}
    assert RUNTIMES[2:] == [None] * 2
    with pytest.raises(DeployError, match="names clash"):
        write_bundle(tmp_path / "twice", **pieces(tmp_path), beside=[card, card])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["bundle", "plain"]


def test_equal_content_gives_equal_bytes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    write_bundle(tmp_path / "later", **pieces(tmp_path))
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "later" / path.name).read_bytes()


def test_a_flipped_bit_is_refused(bundle: Path) -> None:
    random = np.random.default_rng(2)
    for path in sorted(bundle.iterdir()):
        content = path.read_bytes()
        # Every bit of the digests would take long; a stride of 7 meets each bit of a byte.
        flips = random.integers(0, 8 * len(content), 40)
        for flip in range(0, 8 * len(content), 7) if path.name == "SHA256SUMS" else flips:
            changed = bytearray(content)
            changed[flip // 8] ^= 1 << flip % 8
            path.write_bytes(changed)
            refused(bundle)
        path.write_bytes(content)
    check_bundle(bundle)


def test_added_removed_renamed_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in bundle.iterdir())
    for name in names:
        copy = tmp_path / f"without-{name}"
        shutil.copytree(bundle, copy)
        if name == "SHA256SUMS":
            (copy / name).unlink()
            with pytest.raises(DeployError, match="SHA256SUMS") as refusal:
                check_bundle(copy)
            assert refusal.value.exit_code == 66
            continue
        (copy / name).rename(copy / f"{name}.old")
        assert name in refused(copy)
        (copy / f"{name}.old").unlink()
        assert name in refused(copy)
    (bundle / ".hidden").touch()
    assert ".hidden" in refused(bundle)
    (bundle / ".hidden").unlink()
    (bundle / "folder").mkdir()
    assert "folder" in refused(bundle)


def test_a_link_in_place_of_a_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels.txt").rename(tmp_path / "labels.txt")
    (bundle / "labels.txt").symlink_to(tmp_path / "labels.txt")
    assert "labels.txt" in refused(bundle)


def test_nothing_is_parsed_before_the_digests_hold(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in ((json, "loads"), (np, "load")):
        monkeypatch.setattr(*parser, lambda *_, **__: pytest.fail("was parsed"))
    (bundle / "model.int8.onnx").write_bytes(b"other")
    assert "model.int8.onnx" in refused(bundle)


def test_sums_that_could_lead_elsewhere_are_refused(bundle: Path) -> None:
    sums = (bundle / "SHA256SUMS").read_text()
    first = sums.splitlines()[0]
    for changed in (
        sums + first + "\n",
        sums + "\n",
        sums[:-1],
        sums.upper(),
        sums + f"{'0' * 64}  ../secret\n",
        sums + f"{'0' * 64}  /etc/passwd\n",
        "",
        sums + "é",
    ):
        (bundle / "SHA256SUMS").write_text(changed, "utf-8")
        refused(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"models": {"int8": "../model.onnx"}},
        {"models": {}},
        {"models": {"other": "model.int8.onnx"}},
        {"models": ["model.int8.onnx"]},
        {"files": {}},
    ],
)
def test_a_manifest_that_is_off_is_refused(bundle: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text()) | change
    rewrite(bundle, "manifest.json", json.dumps(manifest).encode())
    refused(bundle)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"{"),
        ("manifest.json", b"[1]"),
        ("samples.npz", b"PK\x03\x04"),
        ("samples.npz", b""),
        ("labels.txt", b"one\ntwo\n"),
        ("labels.txt", b"\xff"),
    ],
)
def test_parts_that_do_not_parse_are_refused(bundle: Path, name: str, content: bytes) -> None:
    rewrite(bundle, name, content)
    refused(bundle)


def test_the_models_must_still_say_what_they_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRIFT, "int8", 0.001)
    check_bundle(bundle)
    monkeypatch.setitem(DRIFT, "int8", 5.0)
    assert "model.int8.onnx: on the sample images logits are off" in refused(bundle)
    monkeypatch.setitem(DRIFT, "int8", float("nan"))
    assert "logits are off by nan" in refused(bundle)
    monkeypatch.setitem(DRIFT, "int8", 0.0)
    rewrite(bundle, "model.fp32.onnx", (-WEIGHTS).tobytes())
    assert "model.fp32.onnx" in refused(bundle)


def test_another_class_is_refused_however_close(tmp_path: Path) -> None:
    given = pieces(tmp_path)
    logits = given["logits"]["fp32"].copy()
    top = np.argsort(logits[0])[-2:]
    logits[0, top] = logits[0].max() + np.array([0.001, 0], np.float32)
    gap = float(np.abs(logits - given["logits"]["fp32"]).max())
    assert gap < 0.02 * np.abs(logits).max()  # so it is the class that is refused
    given["logits"]["fp32"] = logits
    write_bundle(tmp_path / "bundle", **given)
    assert "another class" in refused(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"labels": LABELS[:-1]}, 65),
        ({"labels": ["a\nb", *LABELS[1:]]}, 65),
        ({"metadata": {key: METADATA[key] for key in ("model", "threat", "sparsity")}}, 65),
        ({"metadata": METADATA | {"x": float("nan")}}, 65),
        ({"samples": SAMPLES[:15]}, 65),
        ({"samples": SAMPLES.astype(np.float32)}, 65),
        ({"logits": {"int8": np.zeros((16, 10), np.float32)}}, 65),
        ({"logits": dict.fromkeys(("int8", "fp32"), np.zeros((16, 10)))}, 65),
        ({"logits": dict.fromkeys(("int8", "fp32"), np.full((16, 10), np.nan, np.float32))}, 65),
        ({"models": {}}, 65),
        ({"models": {"int8": Path("absent.onnx"), "fp32": Path("absent.onnx")}}, 66),
    ],
)
def test_pieces_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], code: int
) -> None:
    with pytest.raises(DeployError) as refusal:
        write_bundle(tmp_path / "bundle", **(pieces(tmp_path) | change))
    assert refusal.value.exit_code == code
    assert not (tmp_path / "bundle").exists()


def test_names_that_clash_are_refused(tmp_path: Path) -> None:
    given = pieces(tmp_path)
    for names in (
        ["model.onnx", "model.onnx"],
        ["manifest.json", "m.onnx"],
        ["a b.onnx", "m.onnx"],
    ):
        for folder, name in zip(("x", "y"), names, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(WEIGHTS.tobytes())
        models = {
            key: tmp_path / folder / name
            for key, folder, name in zip(given["models"], ("x", "y"), names, strict=True)
        }
        given["models"] = models
        with pytest.raises(DeployError) as refusal:
            write_bundle(tmp_path / "bundle", **given)
        assert refusal.value.exit_code == 65


def test_an_existing_folder_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="exists already") as refusal:
        write_bundle(bundle, **pieces(tmp_path))
    assert refusal.value.exit_code == 73
    check_bundle(bundle)


def test_no_bundle_is_another_refusal(tmp_path: Path) -> None:
    with pytest.raises(DeployError) as refusal:
        check_bundle(tmp_path / "absent")
    assert refusal.value.exit_code == 66
