"""Processes that train one network together: who this one is, and what all of them share.

`torchrun` starts them, each with a number, its rank. Every rank has the whole network and takes its
rows of every batch; what it makes of them is summed, so that all take the same step. Without
`torch.distributed` there is one rank, and nothing here does anything.

Which rows are whose is in `rank_rows`, what is made of them together in `rank_sums`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from advprune.errors import Refused


class RankLost(Refused):
    """Another rank has ended before the work was done."""

    exit_code = 71


class RanksDisagree(Refused):
    """Ranks that must hold the same do not."""

    exit_code = 70


def count() -> int:
    """How many there are; 1 where the process is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number() -> int:
    """Which one this is, counted from zero."""
    return dist.get_rank() if count() > 1 else 0


def local_count() -> int:
    """How many share the cores of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """How many of this machine's are for this rank."""
    return max(1, (os.cpu_count() or 1) // local_count())


def total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, the same bits on each; the tensor itself where there is one.

    Raises:
        RankLost: as everything here that waits for other ranks.
    """
    if count() == 1:
        return tensor
    summed = tensor.detach().clone(memory_format=torch.contiguous_format)
    with _together():
        dist.all_reduce(summed)
    return summed


def any_of(flag: bool) -> bool:
    """Whether it is true on some rank."""
    return flag if count() == 1 else bool(total(torch.tensor(int(flag))))


def from_first(data: bytes) -> bytes:
    """What the first rank gave, on all; what the others give is not looked at."""
    if count() == 1:
        return data
    mine = bytearray(data if number() == 0 else b"")
    size = int(total(torch.tensor(len(mine))))
    if not size:
        return b""
    there = torch.frombuffer(mine or bytearray(size), dtype=torch.uint8)
    with _together():
        dist.broadcast(there, 0)
    return there.numpy().tobytes()


def exchange(data: bytes) -> list[bytes]:
    """What each rank gave, in their order."""
    if count() == 1:
        return [data]
    lengths = torch.zeros(count(), dtype=torch.int64)
    lengths[number()] = len(data)
    sizes = total(lengths).tolist()
    buffers = [torch.empty(max(sizes), dtype=torch.uint8) for _ in sizes]
    mine = torch.zeros(max(sizes), dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[:0]
    with _together():
        dist.all_gather(buffers, mine)
    return [b[:size].numpy().tobytes() for b, size in zip(buffers, sizes, strict=True)]


def demand_same(what: str, digest: bytes) -> None:
    """Compare a digest over all ranks.

    Args:
        what: it is a digest of, for the message.

    Raises:
        RanksDisagree: naming the ranks that have another than the first.
    """
    first, *others = exchange(digest)
    if odd := [str(rank) for rank, other in enumerate(others, start=1) if other != first]:
        raise RanksDisagree(
            f"rank {', '.join(odd)}: {what} is not that of rank 0; the ranks must be alike in "
            "hardware and software; go on from the last checkpoint with the same command"
        )


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise RankLost(
            f"rank {number()}: another rank has ended ({reason}); the same command goes on from "
            "the last checkpoint"
        ) from error
