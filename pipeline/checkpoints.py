"""The checkpoints of one stage: the last two of training, and what attacks have found.

A file holds a line with the SHA-256 of all that follows, a line of JSON, and safetensors. Settings,
parents, threads and versions need no place in it: a checkpoint lives in the folder of its stage,
whose key covers them.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from advprune.files import write
from advprune.observer import Saved, Tensors
from pipeline.store import CHECKPOINT, checkpoints_in

_KEPT = 2  # the newer one may have been damaged since
_MAGIC = b"advprune checkpoint 2 sha256="


class Checkpoints:
    """Of the stage that fills a folder.

    Args:
        tell: given one line when one cannot be used.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell

    def save(self, step: int, tensors: Tensors, history: list[dict]) -> None:
        """Keep this one and the one before.

        Raises:
            StorageFailed, CannotCreate: it cannot be written; the earlier ones are as they were.
        """
        path = self._folder / f"{CHECKPOINT}{step:09d}"
        write(path, _pack({"step": step, "history": history}, tensors))
        for old in checkpoints_in(self._folder)[:-_KEPT]:
            old.unlink()

    def latest(self) -> Saved | None:
        """The newest that is whole; those that are not are removed, and that is told."""
        for path in reversed(checkpoints_in(self._folder)):
            if (found := self._read(path)) is not None:
                about, tensors = found
                return about["step"], tensors, about["history"]
        return None

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What was made under a name, else what `make` makes now; see `Observer.kept`.

        Raises:
            StorageFailed, CannotCreate: as `save`.
        """
        path = self._folder / f"{CHECKPOINT}of-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        found = self._read(path) if path.exists() else None
        if found is not None and found[0] == {"name": name}:
            return found[1]
        tensors = make()
        write(path, _pack({"name": name}, tensors))
        return tensors

    def _read(self, path: Path) -> tuple[dict[str, Any], Tensors] | None:
        found = _unpack(path.read_bytes())
        if found is None:
            path.unlink()
            self._tell(f"{path}: damaged or of another version; going on from what was before")
        return found


def _pack(about: dict[str, Any], tensors: Tensors) -> bytes:
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    content = json.dumps(about).encode() + b"\n" + safetensors.torch.save(plain)
    return _first_line(content) + content


def _first_line(content: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _unpack(data: bytes) -> tuple[dict[str, Any], Tensors] | None:
    """What was packed; None where these are not the bytes that were written."""
    end = data.find(b"\n") + 1
    first, content = data[:end], data[end:]
    if first != _first_line(content):
        return None
    line, _, tensors = content.partition(b"\n")
    return json.loads(line), safetensors.torch.load(tensors)
