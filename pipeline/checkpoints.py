"""The checkpoints of one stage: the last two, each checked before it is read.

A file holds a line with the SHA-256 of all that follows, a line of JSON, and safetensors. Settings,
parents, threads and versions need no place in it: a checkpoint lives in the folder of its stage,
whose key covers them.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from advprune.files import write
from advprune.train import Saved
from pipeline.store import CHECKPOINT, checkpoints_in

_KEPT = 2  # the newer one may have been damaged since
_MAGIC = b"advprune checkpoint sha256="


class Checkpoints:
    """Of the stage that fills a folder.

    Args:
        tell: given one line when a checkpoint cannot be used.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        """Keep this one and the one before.

        Raises:
            StorageFailed, CannotCreate: it cannot be written; the earlier ones are as they were.
        """
        about = json.dumps({"step": step, "history": history}).encode()
        content = about + b"\n" + safetensors.torch.save(tensors)
        write(self._folder / f"{CHECKPOINT}{step:09d}", _first_line(content) + content)
        for old in checkpoints_in(self._folder)[:-_KEPT]:
            old.unlink()

    def latest(self) -> Saved | None:
        """The newest that is whole; those that are not are removed, and that is told."""
        for path in reversed(checkpoints_in(self._folder)):
            saved = _read(path.read_bytes())
            if saved is not None:
                return saved
            path.unlink()
            self._tell(f"{path}: damaged, its digest does not hold; going on from what was before")
        return None


def _first_line(content: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _read(data: bytes) -> Saved | None:
    """What was saved; None where these are not the bytes that were written."""
    end = data.find(b"\n") + 1
    first, content = data[:end], data[end:]
    if first != _first_line(content):
        return None
    line, _, tensors = content.partition(b"\n")
    about = json.loads(line)
    return about["step"], safetensors.torch.load(tensors), about["history"]
