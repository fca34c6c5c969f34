"""Ranks of one run: they meet, the first one leads and writes, the others follow it.

Every rank plans the same stages. The first finds out what is there already; of what is not it makes
alone what one process can, and says so when a stage is for all. Nobody else writes anything, but
what attacks found on its images, beside what they found on those of the first.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from advprune import ranks
from advprune.errors import Refused, Unavailable
from advprune.method import Progress
from advprune.observer import Observer, Saved, Tensors

# The stages that all ranks make together, whose steps or images they share.
SHARED = ("standard", "adversarial", "prune", "finetune", "quantize", "verify")
# A rank that has ended is known at once; so long may others wait for what one does alone.
_PATIENCE = timedelta(hours=12)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meet the other ranks where `torchrun` started several.

    Args:
        device: resolved; each rank of a machine takes a GPU of its own.

    Raises:
        Refused: all of them would compute on one GPU.
        Unavailable: there are fewer GPUs than ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.startswith("cuda"):
        if ":" in device:
            raise Refused(f"--device {device}: each rank takes a GPU of its own; give cuda")
        own = int(os.environ["LOCAL_RANK"])
        if own >= (there := torch.cuda.device_count()):
            raise Unavailable(f"rank {own} of this machine: it has {there} GPUs, one for each rank")
        torch.cuda.set_device(own)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    yield
    # Not after an error: the others learn of it because this process ends.
    dist.destroy_process_group()


def say(word: Mapping[str, Any]) -> None:
    """As the first rank, tell all others; where there are none, nobody."""
    ranks.from_first(json.dumps(word).encode())


def hear() -> dict[str, Any]:
    """As another rank, wait for what the first has to say. Raises RankLost when it has ended."""
    return json.loads(ranks.from_first(b""))


def led(observer: Observer, stage: str, folder: Path) -> Observer:
    """As the first rank, the observer of a stage that is begun now, by all if it is for all.

    Args:
        folder: which the stage fills.
    """
    if ranks.count() == 1 or stage not in SHARED:
        return observer
    say({"make": str(folder)})
    return Together(observer)


class Together:
    """The observer of a stage that all ranks make: each has one, around its own.

    All stop and save at the same steps, and begin from what the first has saved.
    """

    def __init__(self, own: Observer) -> None:
        self._own = own

    def stepping(self) -> AbstractContextManager[None]:
        return self._own.stepping()

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._own.step(progress, metrics)

    def due(self, step: int) -> bool:
        return ranks.any_of(self._own.due(step))

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self._own.save(step, tensors, history)

    def restore(self) -> Saved | None:
        """What the first rank has; the others have nothing."""
        step, tensors, history = self._own.restore() or (-1, {}, [])
        about = json.dumps({"step": step, "history": history}).encode()
        said = ranks.from_first(about)
        saved = ranks.from_first(safetensors.torch.save(tensors))
        first = json.loads(said)
        if first["step"] < 0:
            return None
        return first["step"], safetensors.torch.load(saved), first["history"]

    def epoch(self, history: list[dict]) -> None:
        self._own.epoch(history)

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """A rank's own: what it makes is of its images."""
        return self._own.kept(f"{name} by rank {ranks.number()} of {ranks.count()}", make)
