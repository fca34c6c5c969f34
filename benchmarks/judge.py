"""Natural, PGD-10 and AutoAttack accuracy of exported files, image by image and piece by piece.

What is attacked is the differentiable twin of a file: for int8 the same integers as the engine, on
whatever device has room for 10,000 images under 5,000 queries each. Each piece is a file of its
own, so that work which is broken off goes on where it stood.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.attacks.spec import parse
from advprune.data import Split
from advprune.evaluate import BATCH, is_correct, predict, survives
from advprune.files import write
from advprune.repro import derive
from advprune.twin import differentiable
from advprune.types import Threat
from deploy.packing import pack, unpack
from deploy.statistics import share

CLEAN = "clean"
# As published: ten steps of eps / 4 from one random start; the standard AutoAttack.
MEASURES = {CLEAN: "", "pgd10": "pgd:steps=10", "autoattack": "autoattack"}
PIECE = 1000  # images


def judge(
    files: Mapping[str, Path],
    split: Split,
    threat: Threat,
    seed: int,
    folder: Path,
    measures: Mapping[str, str] = MEASURES,
    piece: int = PIECE,
    over: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]] | None:
    """Verdicts of each file under each measure, or None where time was over first.

    Args:
        files: engine -> ONNX file.
        split: on the device to compute on.
        folder: of the finished pieces, each bound to the file's digest, the threat and the attack.
        over: whether no other piece should be begun.

    Returns:
        engine -> {"sha256", and measure -> share with its interval, packed flags, seconds}.
    """
    results: dict[str, dict[str, Any]] = {}
    for engine, path in files.items():
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        twin: nn.Module | None = None
        results[engine] = {"sha256": digest}
        for measure, spec in measures.items():
            flags: list[bool] = []
            seconds = 0.0
            for start in range(0, len(split), piece):
                rows = torch.arange(start, min(start + piece, len(split)))
                part = split.subset(rows.to(split.images.device))
                asked = [digest, threat.to_dict(), spec, seed, part.indices.tolist()]
                key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
                place = folder / f"{engine}-{measure}-{start:05d}-{key}.json"
                if not place.is_file():
                    if over():
                        return None
                    twin = twin or differentiable(content, path.name).to(split.images.device)
                    _write(place, *_timed(twin, part, threat, derive(seed, "row", measure), spec))
                found = json.loads(place.read_bytes())
                flags += unpack(found["flags"], len(part))
                seconds += found["seconds"]
            results[engine][measure] = {
                **share(flags),
                "flags": pack(flags),
                "seconds": round(seconds, 1),
            }
    return results


def _timed(
    twin: nn.Module, part: Split, threat: Threat, seed: int, spec: str
) -> tuple[list[bool], float]:
    started = time.perf_counter()
    if spec:
        right = survives(twin, part, threat, seed, parse(spec), BATCH)
    else:
        right = is_correct(predict(twin, part.images), part.labels)
    return right.tolist(), time.perf_counter() - started


def _write(place: Path, flags: list[bool], seconds: float) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = {"flags": pack(flags), "count": len(flags), "seconds": round(seconds, 3)}
    write(place, json.dumps(content).encode())
