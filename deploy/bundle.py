"""What ships: models, labels, sixteen images with the logits they must give, and digests of it all.

No model format notices a flipped bit, so a bundle is trusted only after every byte of it has been
checked, before anything is parsed; then the models must still give the logits that were measured.
Whoever replaces SHA256SUMS as well replaces the bundle: compare it with a copy from elsewhere.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.files import (
    label_lines,
    sha256,
    unique_keys,
    whole_folder,
    write_atomic,
    write_sums,
)

SAMPLES = 16
# Of the largest logit: an int8 engine on another processor may round an activation the other way.
TOLERANCE = 0.02
_METADATA = ("model", "threat", "sparsity", "robust_accuracy")
_OWN = ("manifest.json", "SHA256SUMS", "labels.txt", "samples.npz")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
_SUM = re.compile(rf"([0-9a-f]{{64}})  ({_NAME.pattern})")


def write_bundle(
    folder: Path,
    *,
    models: Mapping[str, Path],
    labels: list[str],
    metadata: Mapping[str, Any],
    samples: NDArray[np.uint8],
    logits: Mapping[str, NDArray[np.float32]],
    beside: Sequence[Path] = (),
    runtime: str | None = None,
) -> None:
    """Write a bundle: completely, or not at all. The same content gives the same bytes.

    Args:
        folder: of the bundle; must not exist.
        models: name -> a file that `deploy.runtime.load` opens, which keeps its file name.
        labels: one line of text for each class.
        metadata: JSON with at least model, threat, sparsity and robust_accuracy, the last one
            name of the model -> value, low, high.
        samples: uint8 (16, C, H, W).
        logits: name of the model -> float32 (16, K), what the model says about samples / 255.
        beside: further files that a model needs, which keep their names too.
        runtime: that is to run the models; None is the default for each file.

    Raises:
        DeployError: 65, the pieces do not fit together; 66, a model is missing; 73, the folder
            exists or cannot be created; 74, a write failed.
    """
    files = [*models.values(), *beside]
    _check_pieces(models, files, metadata, samples, logits, len(labels))
    lines = label_lines(labels)
    with whole_folder(folder) as draft:
        for path in files:
            write_atomic(draft / path.name, path.read_bytes())
        write_atomic(draft / "labels.txt", lines)
        arrays = {f"logits_{name}": value for name, value in logits.items()}
        write_atomic(draft / "samples.npz", _npz({"images": samples, **arrays}))
        manifest = {
            "schema": 1,
            "input": "float32 NCHW in [0, 1], or uint8 NHWC where the graph takes it",
            "models": {name: path.name for name, path in models.items()},
            "labels": "labels.txt",
            "samples": "samples.npz",
            "files": _files(draft),
            "metadata": dict(metadata),
            **({"runtime": runtime} if runtime else {}),
        }
        content = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(draft / "manifest.json", content.encode())
        write_sums(draft)


def check_bundle(folder: Path) -> dict[str, Any]:
    """Trust a bundle: exactly the listed files, every digest, then every expected logit.

    Returns:
        The manifest.

    Raises:
        DeployError: 65, anything is off; 66, there is no bundle; 69, no runtime for its models.
    """
    _check_digests(folder)
    try:
        manifest, images, expected = _parse(folder)
    except _MALFORMED as error:
        raise DeployError(f"{folder}: not a bundle of this schema ({error!r})", 65) from error

    # The runtimes are what this checks against; a digest check alone needs none of them.
    from deploy.runtime import load

    for name, file in manifest["models"].items():
        logits = load(folder / file, runtime=manifest.get("runtime")).predict(images)
        where = f"{folder / file}: on the sample images"
        _demand(logits.shape == expected[name].shape, f"{where} gives {logits.shape} logits")
        gap = float(np.abs(logits - expected[name]).max())
        allowed = TOLERANCE * float(np.abs(expected[name]).max())
        _demand(gap <= allowed, f"{where} logits are off by {gap:.3g}, above {allowed:.3g}")
        same = bool((logits.argmax(1) == expected[name].argmax(1)).all())
        _demand(same, f"{where} another class wins")
    return manifest


def _parse(folder: Path) -> tuple[dict[str, Any], NDArray[np.float32], dict[str, Any]]:
    """Manifest, float32 images and expected logits of a bundle whose digests hold.

    Raises:
        one of _MALFORMED: it is not what was written.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes(), object_pairs_hook=unique_keys)
    if manifest["schema"] != 1:
        raise ValueError(f"schema {manifest['schema']}")
    if not isinstance(manifest.get("runtime", ""), str):
        raise ValueError(f"runtime {manifest['runtime']}")
    if manifest["files"] != _files(folder):
        raise ValueError("manifest.json and SHA256SUMS disagree")
    # Names of listed files only: none leads out of the folder.
    if not manifest["models"] or not set(manifest["models"].values()) <= set(manifest["files"]):
        raise ValueError("a model is not listed")
    classes = len((folder / "labels.txt").read_text("utf-8").splitlines())
    # Through memory: np.load leaves a file that it cannot read open.
    content = io.BytesIO((folder / "samples.npz").read_bytes())
    with np.load(content, allow_pickle=False) as archive:
        images = archive["images"].astype(np.float32) / 255
        expected = {name: archive[f"logits_{name}"] for name in manifest["models"]}
    if any(value.shape != (SAMPLES, classes) for value in expected.values()):
        raise ValueError("logits, samples and labels do not fit together")
    return manifest, images, expected


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of everything that the manifest lists."""
    return {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name not in ("manifest.json", "SHA256SUMS")
    }


def _check_digests(folder: Path) -> None:
    """Compare the files of a folder with its SHA256SUMS; opens no other file before."""
    try:
        sums = (folder / "SHA256SUMS").read_bytes().decode("ascii")
    except OSError as error:
        raise DeployError(f"{folder}: no bundle, SHA256SUMS cannot be read", 66) from error
    except ValueError as error:
        raise DeployError(
            f"{folder}: SHA256SUMS is not text; fetch the bundle again", 65
        ) from error
    matches = [_SUM.fullmatch(line) for line in sums.removesuffix("\n").split("\n")]
    digests = {match[2]: match[1] for match in matches if match}
    _demand(
        len(digests) == len(matches) and sums.endswith("\n"),
        f"{folder}: SHA256SUMS has a line that is not a digest and a name of its own",
    )
    _demand({"manifest.json", "labels.txt", "samples.npz"} <= set(digests), f"{folder}: incomplete")
    present = {path.name: path for path in folder.iterdir() if path.name != "SHA256SUMS"}
    stray = ", ".join(sorted(set(digests) ^ set(present)))
    _demand(not stray, f"{folder}: {stray} missing, or not listed in SHA256SUMS")
    for name, path in sorted(present.items()):
        plain = path.is_file() and not path.is_symlink()
        _demand(plain and sha256(path) == digests[name], f"{path}: not the file that was bundled")


def _check_pieces(
    models: Mapping[str, Path],
    files: Sequence[Path],
    metadata: Mapping[str, Any],
    samples: NDArray[np.uint8],
    logits: Mapping[str, NDArray[np.float32]],
    classes: int,
) -> None:
    for path in files:
        if not path.is_file():
            raise DeployError(f"bundle: {path} does not exist; run the export first", 66)
    names = [path.name for path in files]
    _demand(bool(models) and len({*names, *_OWN}) == len(names) + len(_OWN), "bundle: names clash")
    for name in names:
        _demand(bool(_NAME.fullmatch(name)), f"bundle: file name {name!r}; use A-Z a-z 0-9 . _ -")
    missing = [key for key in _METADATA if key not in metadata]
    _demand(not missing, f"bundle: metadata lacks {', '.join(missing)}")
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except ValueError as error:
        raise DeployError(f"bundle: metadata is not JSON ({error})", 65) from error
    right = samples.dtype == np.uint8 and samples.ndim == 4 and len(samples) == SAMPLES
    _demand(
        right, f"bundle: samples must be uint8 (16, C, H, W), got {samples.dtype} {samples.shape}"
    )
    _demand(set(logits) == set(models), "bundle: logits and models must have the same names")
    for name, value in logits.items():
        right = value.dtype == np.float32 and value.shape == (SAMPLES, classes)
        _demand(right, f"bundle: logits of {name} must be float32 (16, {classes})")
        _demand(bool(np.isfinite(value).all()), f"bundle: logits of {name} are not finite")


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What `np.savez` writes, with the times of the entries fixed: equal arrays, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue()
            )
    return buffer.getvalue()


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DeployError(f"{otherwise}; fetch or build it again", 65)
