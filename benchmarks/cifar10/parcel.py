"""What a row needs to go on at another place, in a few files of bounded size; bit for bit.

    .venv/bin/python benchmarks/cifar10/parcel.py pack RUNS PARCEL
    .venv/bin/python benchmarks/cifar10/parcel.py unpack PARCEL RUNS

Left out is what is made again in seconds: decoded images, and a `standard` stage without epochs.
A tensor that occurs twice, as frozen weights do in a checkpoint and in the stage before, is stored
once; the bytes of its numbers are sorted by significance before they are compressed, without loss.
"""

import argparse
import hashlib
import itertools
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from advprune.files import write
from pipeline.stage import MANIFEST
from pipeline.store import checkpoints_in

PART_BYTES = 16 << 20
MOST_PARTS = 8
_MAGIC = b"advprune parcel sha256="
_LENGTH = struct.Struct("<Q")
_FLOAT = 4  # bytes: the width whose planes compress best, harmless to others
_LEVEL = 3  # of zlib; the mantissas do not get smaller with more


class ParcelError(Exception):
    """Too large, or not the bytes that were packed."""


def needed(runs: Path) -> Iterator[Path]:
    """The files that have to travel, sorted."""
    for folder in sorted((runs / "store").iterdir() if (runs / "store").is_dir() else ()):
        if folder.is_dir() and not _is_made_again(folder):
            older = set(checkpoints_in(folder)[:-1])
            yield from (p for p in sorted(folder.rglob("*")) if p.is_file() and p not in older)
    yield from sorted(p for p in runs.glob("rows/**/*") if p.is_file())


def _is_made_again(folder: Path) -> bool:
    name = folder.name.removeprefix(".tmp-")
    if name.startswith("data-"):
        return True
    manifest = folder / MANIFEST
    if not name.startswith("standard-") or not manifest.is_file():
        return False
    return json.loads(manifest.read_bytes())["config"]["training"]["epochs"] == 0


def pack(runs: Path, *, part_bytes: int = PART_BYTES, most: int = MOST_PARTS) -> list[bytes]:
    """The parts of one parcel.

    Raises:
        ParcelError: it would take more than `most` parts.
    """
    blobs: dict[str, bytes] = {}
    about: dict[str, dict[str, Any]] = {}
    files: dict[str, list[str]] = {}
    for path in needed(runs):
        name = path.relative_to(runs).as_posix()
        files[name] = []
        for piece in _pieces(path.read_bytes()):
            key = hashlib.sha256(piece).hexdigest()
            files[name].append(key)
            if key not in blobs:
                blobs[key] = zlib.compress(_planes(piece), _LEVEL)
                about[key] = {"stored": len(blobs[key]), "bytes": len(piece)}
    index = json.dumps({"files": files, "blobs": about}).encode()
    body = _LENGTH.pack(len(index)) + index + b"".join(blobs.values())
    whole = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    parts = [whole[at : at + part_bytes] for at in range(0, len(whole), part_bytes)]
    if len(parts) > most:
        raise ParcelError(
            f"{runs}: {len(whole):,} bytes are {len(parts)} parts of {part_bytes:,}, and {most} "
            "are allowed; end at a stage's end, or keep no best weights (validate_every=0)"
        )
    return parts


def unpack(parts: list[bytes], runs: Path) -> int:
    """Put the files back; how many there were.

    Raises:
        ParcelError: not a whole parcel, or a name that leads out of `runs`.
    """
    whole = b"".join(parts)
    line, _, body = whole.partition(b"\n")
    if line != _MAGIC + hashlib.sha256(body).hexdigest().encode():
        raise ParcelError("not a parcel, or parts of it are missing or damaged")
    (length,) = _LENGTH.unpack_from(body)
    index = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    at, blobs = _LENGTH.size + length, {}
    for key, blob in index["blobs"].items():
        blobs[key] = _unplanes(zlib.decompress(body[at : at + blob["stored"]]))
        at += blob["stored"]
    for name, keys in index["files"].items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise ParcelError(f"{name!r} leads out of {runs}")
        (runs / place).parent.mkdir(parents=True, exist_ok=True)
        write(runs / place, b"".join(blobs[key] for key in keys))
    return len(index["files"])


def _pieces(content: bytes) -> list[bytes]:
    """The content cut at its tensors, where it is safetensors or a checkpoint that holds some."""
    start = 0
    if content.startswith(b"advprune checkpoint "):
        start = content.index(b"\n", content.index(b"\n") + 1) + 1
    try:
        (length,) = _LENGTH.unpack_from(content, start)
        first = start + _LENGTH.size + length
        header = json.loads(content[start + _LENGTH.size : first])
        ends = sorted(entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__")
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        return [content]  # some other file
    cuts = [0, first, *(first + end for end in ends), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(cuts) if a < b]


def _planes(data: bytes) -> bytes:
    """First bytes of all numbers, then second ones, ...; what makes no whole number comes last."""
    whole = len(data) // _FLOAT * _FLOAT
    planes = np.frombuffer(data, np.uint8, whole).reshape(-1, _FLOAT).T
    return planes.tobytes() + data[whole:]


def _unplanes(data: bytes) -> bytes:
    whole = len(data) // _FLOAT * _FLOAT
    numbers = np.frombuffer(data, np.uint8, whole).reshape(_FLOAT, -1).T
    return numbers.tobytes() + data[whole:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    try:
        if options.verb == "unpack":
            paths = sorted(options.source.glob("part-*"))
            count = unpack([path.read_bytes() for path in paths], options.target)
            sys.stdout.write(f"{count} files into {options.target}\n")
            return
        parts = pack(options.source)
    except ParcelError as error:
        raise SystemExit(f"parcel: {error}") from error
    options.target.mkdir(parents=True, exist_ok=True)
    for stale in options.target.glob("part-*"):
        stale.unlink()
    for number, part in enumerate(parts):
        write(options.target / f"part-{number}", part)
    size = sum(map(len, parts))
    sys.stdout.write(f"{len(parts)} parts, {size:,} bytes, in {options.target}\n")


if __name__ == "__main__":
    main()
