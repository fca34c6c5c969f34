"""A bundle as it ships to a device, made of one small network's real files."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from exported_net import CLASSES, SHAPE, Exported, run
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
SCRIPTS = (ROOT / "export" / "build_engine.py", ROOT / "deploy" / "edge_verify.py")
FILES = {"fp32": "model.onnx", "int8": "model.int8.x86.onnx", "int8-tensorrt": "model.int8.onnx"}
GOLDEN = 16

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def write_bundle(folder: Path, net: Exported, answers: Mapping[str, Predict] | None = None) -> Path:
    """A whole bundle whose expected logits are ONNX Runtime's.

    Args:
        folder: to be made.
        answers: by model, who gives its expected logits instead.
    """
    (folder / "triton" / "net" / "1").mkdir(parents=True)
    paths = {"fp32": net.float_onnx, "int8": net.x86, "int8-tensorrt": net.int8}
    for name, path in paths.items():
        shutil.copyfile(path, folder / FILES[name])
    for script in SCRIPTS:
        shutil.copyfile(script, folder / script.name)
    (folder / "labels.txt").write_text("".join(f"class {k}\n" for k in range(CLASSES)))
    (folder / "triton" / "net" / "config.pbtxt").write_text('name: "net"\n')
    shutil.copyfile(net.x86, folder / "triton" / "net" / "1" / "model.onnx")
    (folder / "verdicts.int8.json").write_text("{}\n")

    pixels = np.rint(net.images * 255).astype(np.uint8)
    noise = np.random.default_rng(1).uniform(-0.05, 0.05, pixels.shape)
    clean = pixels.astype(np.float32) / np.float32(255)
    adversarial = np.clip(clean + noise, 0, 1).astype(np.float32)
    labels = run(net.float_onnx, clean, optimise=True).argmax(1).astype(np.int64)
    labels[::8] = (labels[::8] + 1) % CLASSES
    golden: dict[str, Any] = {"images": pixels[:GOLDEN]}
    replay: dict[str, Any] = {"clean": pixels, "adversarial": adversarial, "labels": labels}
    for name, path in paths.items():
        answer = (answers or {}).get(name) or (lambda x, path=path: run(path, x, optimise=True))
        golden[f"logits_{name}"] = answer(clean[:GOLDEN])
        replay[f"clean_logits_{name}"] = answer(clean)
        replay[f"adversarial_logits_{name}"] = answer(adversarial)
    put_arrays(folder / "golden.npz", golden)
    put_arrays(folder / "replay.npz", replay)
    digest = hashlib.sha256(adversarial.tobytes()).hexdigest()
    manifest = {
        "schema": 2,
        "name": "net",
        "release": 3,
        "input": {
            "name": "images",
            "type": "float32",
            "layout": "NCHW",
            "shape": [*SHAPE],
            "low": 0.0,
            "high": 1.0,
        },
        "models": FILES,
        "labels": "labels.txt",
        "golden": "golden.npz",
        "replay": "replay.npz",
        "protocol": {
            "data": "0" * 64,
            "images": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
            "threat": {"norm": "linf", "eps": 0.05, "low": 0.0, "high": 1.0},
            "attacks": [{"name": "replay", "sha256": digest}],
            "seed": 0,
            "input": "float32 NCHW",
        },
        "metadata": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Digests of everything, as whoever ships, or whoever tampers with all of it, writes them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        name: {"sha256": _sha256(path), "bytes": path.stat().st_size, "executable": False}
        for name, path in contents(folder).items()
        if name not in ("manifest.json", "manifest.json.sig", "SHA256SUMS")
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    lines = [
        f"{_sha256(path)}  {name}\n"
        for name, path in contents(folder).items()
        if name not in ("manifest.json.sig", "SHA256SUMS")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on the manifest, and seal the bundle again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)


def change_arrays(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on the arrays of a file, and seal its bundle again."""
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    put_arrays(path, arrays)
    seal(path.parent)


def put_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def contents(folder: Path) -> dict[str, Path]:
    """Every file of a folder, by its name in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
