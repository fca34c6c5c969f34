"""Processes that work ahead of whoever wants the results: here, that decode images for training.

They are forked, so that names and digests are there without a copy. What a piece of work comes to
depends on nothing but the piece, so that the number of processes changes no bit.
"""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advprune import ranks
from advprune.errors import OutOfMemory, Refused

_PATIENCE = 30.0  # seconds between a request to end and the end; the parent takes less
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_GONE = "DataLoader worker"  # what torch says of a process that has ended
Work = Callable[[Tensor], Tensor]


def ahead(
    work: Work, parts: Sequence[Tensor], workers: int | None, pinned: bool
) -> Iterator[Tensor]:
    """What `work` makes of each part, in order.

    Args:
        workers: processes; 0 works when asked, None takes one for each core of this process.
        pinned: hand on pinned memory, from which a GPU copies while it computes.

    Raises:
        Refused and its kinds: what `work` raises.
        OutOfMemory: a process was ended from outside.
    """
    with warnings.catch_warnings():
        # More processes than cores is the caller's choice: a disk may be what they wait for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            _Results(work, parts),
            batch_size=None,
            collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType] # there are no lists
            num_workers=cores() if workers is None else workers,
            pin_memory=pinned,
            worker_init_fn=_settle,
            multiprocessing_context=None if workers == 0 else "fork",
            generator=torch.Generator(),  # else it draws from the global one
        )
        results = iter(loader)
    try:
        for found in results:
            if isinstance(found, Refused):
                raise found
            yield found
    except RuntimeError as error:
        if refusal := ended(error):
            raise refusal from error
        raise
    finally:
        del results  # which ends the processes; a traceback would keep it, and them, alive


def ended(error: BaseException) -> OutOfMemory | None:
    """What to say where a process was ended from outside; torch tells it wherever its parent is."""
    if not isinstance(error, RuntimeError) or _GONE not in str(error):
        return None
    return OutOfMemory(
        f"streaming: a process that decodes images was ended ({error}), as happens where memory or "
        "a container's /dev/shm is too small; give it more, or take fewer: --data-workers"
    )


def cores() -> int:
    """How many this process may use, its part of them where several ranks share a machine."""
    affine = hasattr(os, "sched_getaffinity")
    there = len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1
    return max(1, there // ranks.local_count())


class _Results(Dataset[Tensor | Refused]):
    def __init__(self, work: Work, parts: Sequence[Tensor]) -> None:
        self._work, self._parts = work, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Tensor | Refused:
        try:
            return self._work(self._parts[index])
        except Refused as error:
            return error  # raised here, it would reach the parent as a page of text


def _as_it_is(found: Tensor | Refused) -> Tensor | Refused:
    return found


def _settle(_: int) -> None:
    """Leave it to the parent when to stop, and do not outlive it.

    Signals to a whole group would end a process before the parent has saved its step. And whoever
    outlived a parent that was killed would hold its locks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _end_later(number: int, frame: FrameType | None) -> None:
    end = threading.Timer(_PATIENCE, os._exit, [0])
    end.daemon = True
    end.start()
