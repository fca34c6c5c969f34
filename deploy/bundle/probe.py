"""Open the models of a bundle whose digests hold, and ask them what they must answer.

    python -m deploy.bundle.probe FOLDER

A digest says that a file is the one that was bundled, not that it is harmless. So this is a process
of its own with limits on memory and time, although no runtime gets a graph that was not looked at.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle.manifest import MANIFEST, demand, parse, read_outside
from deploy.errors import DeployError
from deploy.recording import arrays_of

# Of the largest logit: an int8 engine on another processor may round an activation the other way.
TOLERANCE = 0.02
_SAME_CLASS = 0.98  # of the replayed images; see H20 of the health checks
_MEMORY = 8 * 2**30  # bytes of addresses; runtimes reserve much more than they use
_CPU_SECONDS = 600


def probe(folder: Path) -> None:
    """Hold every model of a bundle against the logits that it must give.

    Raises:
        DeployError: 65, a graph is not what is shipped, or answers something else; 69, its runtime
            is missing.
    """
    from deploy.runtime import load  # the runtimes come with it, and a limit is set before

    manifest = parse(read_outside(folder, MANIFEST), str(folder / MANIFEST))
    labels = (folder / manifest["labels"]).read_bytes().splitlines()
    golden = _arrays(folder / manifest["golden"])
    replay = _arrays(folder / manifest["replay"]) if "replay" in manifest else {}
    for name, file in manifest["models"].items():
        path = folder / file
        model = load(path, runtime=manifest.get("runtime"))
        shape, classes = tuple(manifest["input"]["shape"]), len(labels)
        takes = (model.info.shape, model.info.classes)
        demand(takes == (shape, classes), f"{path}: takes {takes}, said is {(shape, classes)}")
        images = _floats(golden, "images", folder)
        logits, where = model.predict(images), f"{path}: on the golden images"
        expected = golden.get(f"logits_{name}", np.empty(0))
        demand(expected.shape == logits.shape, f"{where} gives {logits.shape} logits")
        gap = float(np.abs(logits - expected).max())
        allowed = TOLERANCE * float(np.abs(expected).max())
        demand(gap <= allowed, f"{where} logits are off by {gap:.3g}, above {allowed:.3g}")
        demand(_agreement(logits, expected) == 1, f"{where} another class wins")
        for kind in ("clean", "adversarial") if replay else ():
            found = model.predict(_floats(replay, kind, folder))
            share = _agreement(found, replay.get(f"{kind}_logits_{name}"))
            what = f"{path}: on {100 * (1 - share):.1f} % of the {kind} images of the replay"
            demand(share >= _SAME_CLASS, f"{what} another class wins")


def runs_on_cpu(manifest: dict[str, Any]) -> bool:
    """Whether memory can be limited: the driver of a GPU reserves more addresses than there is."""
    files = manifest["models"].values()
    return manifest.get("runtime", "ort") in ("ort", "openvino") and all(
        file.endswith(".onnx") for file in files
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return arrays_of(path)
    except ValueError as error:
        raise DeployError(f"{path}: {error}; build the bundle again", 65) from error


def _floats(arrays: dict[str, NDArray[Any]], name: str, folder: Path) -> NDArray[np.float32]:
    demand(name in arrays, f"{folder}: holds no {name} images")
    found = arrays[name]
    return found.astype(np.float32) / np.float32(255) if found.dtype == np.uint8 else found


def _agreement(found: NDArray[np.float32], expected: NDArray[np.float32] | None) -> float:
    """The share of images on which the same class wins; 0 where they cannot be compared."""
    if expected is None or expected.shape != found.shape:
        return 0.0
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _main() -> None:
    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    try:
        manifest = parse(read_outside(folder, MANIFEST), str(folder / MANIFEST))
        if runs_on_cpu(manifest):
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        probe(folder)
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write("{}\n")


if __name__ == "__main__":
    _main()
