"""Write a bundle: completely, or not at all. The same content gives the same bytes.

No model format notices a flipped bit, so a bundle lists every byte of itself; and no digest notices
a processor that rounds otherwise, so it also says what its models must answer.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import triton
from deploy.bundle.manifest import MANIFEST, SIGNATURE, check_names, demand, write_manifest
from deploy.errors import DeployError
from deploy.files import label_lines, whole_folder, write_atomic, write_sums
from deploy.recording import Recording, npz

SAMPLES = 16
_METADATA = ("model", "threat", "sparsity", "robust_accuracy")
LABELS, GOLDEN, REPLAY, SERVED = "labels.txt", "golden.npz", "replay.npz", "triton"
Logits = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Replay:
    """Images of a verification for the device, and what each model answers to them.

    Attributes:
        protocol: what verdicts on them depend on beside the engine.
        clean, adversarial: name of the model -> float32 (N, K).
    """

    recording: Recording
    protocol: Mapping[str, Any]
    clean: Logits
    adversarial: Logits


@dataclass(frozen=True)
class Contents:
    """What a bundle is made of.

    Attributes:
        name: of the bundle, which stays the same from release to release.
        models: name -> a file that `deploy.runtime.load` opens, which keeps its file name.
        input: name, type, layout, shape (C, H, W), low and high of what the float graph takes.
        labels: one line of text for each class.
        metadata: JSON with at least model, threat, sparsity and robust_accuracy, the last one
            name of the model -> value, low, high.
        samples: uint8 (16, C, H, W).
        logits: name of the model -> float32 (16, K), what the model says about samples / 255.
        release: a number that grows; a device refuses one below that it has.
        replay: images of the verification, where there are any.
        served: models for Triton, their files among those of `models` or still to be built.
        beside: path in the bundle -> a further file, or what is in it; scripts can be run.
        runtime: that is to run the models; None is the default for each file.
    """

    name: str
    models: Mapping[str, Path]
    input: Mapping[str, Any]
    labels: Sequence[str]
    metadata: Mapping[str, Any]
    samples: NDArray[np.uint8]
    logits: Logits
    release: int = 0
    replay: Replay | None = None
    served: Sequence[triton.Model] = ()
    beside: Mapping[str, Path | bytes] | None = None
    runtime: str | None = None


def write_bundle(folder: Path, contents: Contents, key: Path | None = None) -> None:
    """Write a bundle, signed where there is a key.

    Args:
        folder: of the bundle; must not exist.
        key: a private key in PEM, see `signature.read_private`.

    Raises:
        DeployError: 65, the pieces do not fit together, or the key is none; 66, a file is missing;
            69, there is a key and no cryptography; 73, the folder exists or cannot be created; 74,
            a write failed.
    """
    lines = label_lines(contents.labels)
    _check_pieces(contents)
    beside = {path.name: path for path in contents.models.values()} | dict(contents.beside or {})
    sign = _signer(key)
    with whole_folder(folder) as draft:
        for name, source in beside.items():
            _put(draft / name, source)
        _put(draft / LABELS, lines)
        golden = {f"logits_{name}": value for name, value in contents.logits.items()}
        _put(draft / GOLDEN, npz({"images": contents.samples, **golden}))
        if contents.replay is not None:
            _put(draft / REPLAY, _replayed(contents.replay))
        if contents.served:
            triton.fill(draft / SERVED, contents.served, contents.labels)
        manifest = write_manifest(draft, _manifest(contents))
        _put(draft / MANIFEST, manifest)
        write_sums(draft)
        if sign is not None:
            _put(draft / SIGNATURE, sign(manifest))


def _manifest(contents: Contents) -> dict[str, Any]:
    replay = contents.replay
    return {
        "name": contents.name,
        "release": contents.release,
        "input": dict(contents.input),
        "models": {name: path.name for name, path in contents.models.items()},
        "labels": LABELS,
        "golden": GOLDEN,
        "metadata": dict(contents.metadata),
        **({"replay": REPLAY, "protocol": dict(replay.protocol)} if replay else {}),
        **({"runtime": contents.runtime} if contents.runtime else {}),
    }


def _signer(key: Path | None) -> Callable[[bytes], bytes] | None:
    """What signs bytes, found to be able to before anything is written."""
    if key is None:
        return None
    from deploy.bundle import signature  # a package that only those who sign need

    private = signature.read_private(key)
    return lambda content: signature.sign(content, private)


def _replayed(replay: Replay) -> bytes:
    recording = replay.recording
    pixels = {"clean": recording.clean, "adversarial": recording.adversarial}
    clean = {f"clean_logits_{name}": value for name, value in replay.clean.items()}
    adversarial = {f"adversarial_logits_{name}": v for name, v in replay.adversarial.items()}
    return npz({**pixels, "labels": recording.labels, **clean, **adversarial})


def _put(path: Path, source: Path | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        write_atomic(path, source)
    else:
        shutil.copyfile(source, path)
    path.chmod(0o755 if path.suffix == ".py" else 0o644)


def _check_pieces(contents: Contents) -> None:
    models, beside = contents.models, contents.beside or {}
    for path in (*models.values(), *beside.values()):
        if isinstance(path, Path) and not path.is_file():
            raise DeployError(f"bundle: {path} does not exist; run the export first", 66)
    names = [*(path.name for path in models.values()), *beside, LABELS, GOLDEN, REPLAY]
    demand(bool(models) and len(set(names)) == len(names), "bundle: names clash")
    try:
        check_names(dict.fromkeys(names))
        json.dumps(_manifest(contents), allow_nan=False)
    except (ValueError, TypeError) as error:
        raise DeployError(f"bundle: {error}", 65) from error
    missing = [key for key in _METADATA if key not in contents.metadata]
    demand(not missing, f"bundle: metadata lacks {', '.join(missing)}")
    demand(type(contents.release) is int and contents.release >= 0, "bundle: release must be >= 0")
    samples, classes = contents.samples, len(contents.labels)
    right = samples.dtype == np.uint8 and samples.ndim == 4 and len(samples) == SAMPLES
    demand(
        right, f"bundle: samples must be uint8 (16, C, H, W), got {samples.dtype} {samples.shape}"
    )
    answers = [("logits", contents.logits, SAMPLES)]
    if (replay := contents.replay) is not None:
        count = len(replay.recording)
        answers += [("replay", replay.clean, count), ("replay", replay.adversarial, count)]
    for what, logits, count in answers:
        demand(set(logits) == set(models), f"bundle: {what} and models must have the same names")
        for name, value in logits.items():
            right = value.dtype == np.float32 and value.shape == (count, classes)
            demand(right, f"bundle: {what} of {name} must be float32 ({count}, {classes})")
            demand(bool(np.isfinite(value).all()), f"bundle: {what} of {name} are not finite")
