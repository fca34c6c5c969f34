"""Processes that train one network together: who this one is, and what all of them share.

`torchrun` starts them, each with a number, its rank. Every rank has the whole network and takes its
rows of every batch; what it makes of them is summed, so that all take the same step. Without
`torch.distributed` there is one rank, and nothing here does anything.

Gradients are summed after the backward pass, not during it as `DistributedDataParallel` does: of
the ten backward passes and more of an adversarial step only the last is of weights, so that there
is next to nothing to hide the communication behind. In return a method may call the network as it
likes.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

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


def own(rows: Tensor, pieces: int = 1) -> Tensor:
    """The rows (N,) of a batch that are for this rank: a run of them, of nearly equal length.

    Raises:
        Refused: the batch has fewer rows than `pieces` for each rank.
    """
    if len(rows) < count() * pieces:
        raise Refused(
            f"a batch of {len(rows)} images cannot be shared by {count()} ranks in {pieces} pieces "
            "each; give a larger batch_size, or fewer of either"
        )
    return rows.tensor_split(count())[number()]


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


def total_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of the parameters that have one, in place, in one message per type."""
    if count() == 1:
        return
    with torch.no_grad():
        for gradients in _by_type(p.grad for p in parameters if p.grad is not None):
            parts = total(torch.cat([g.reshape(-1) for g in gradients]))
            for gradient, part in zip(gradients, parts.split([g.numel() for g in gradients])):  # noqa: B905
                gradient.copy_(part.view_as(gradient))


def average(tensors: Iterable[Tensor]) -> None:
    """Put in every floating tensor the mean over all ranks."""
    if count() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.copy_(total(tensor) / count())


def any_of(flag: bool) -> bool:
    """Whether it is true on some rank."""
    return flag if count() == 1 else bool(total(torch.tensor(int(flag))))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return total(tensor)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def differentiable_total(tensor: Tensor) -> Tensor:
    """`total` for a loss whose value is the sum of what all ranks make of theirs."""
    return _Total.apply(tensor)  # pyright: ignore[reportReturnType]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        sizes = torch.zeros(count(), dtype=torch.int64, device=rows.device)
        sizes[number()] = len(rows)
        ctx.sizes = total(sizes).tolist()
        whole = rows.new_zeros(sum(ctx.sizes), *rows.shape[1:])
        whole.split(ctx.sizes)[number()].copy_(rows)
        return total(whole)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return total(gradients[0]).split(ctx.sizes)[number()]


def joined(rows: Tensor) -> Tensor:
    """The rows of all ranks, in their order; differentiable as `differentiable_total` is.

    Args:
        rows: (N, ...), another N on each rank.
    """
    return rows if count() == 1 else _Joined.apply(rows)  # pyright: ignore[reportReturnType]


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


def blocks(rows: int, size: int) -> list[Tensor]:
    """Positions 0, 1, ... in blocks of `size`, those that are this rank's: every so manieth.

    A block is computed as it would be by one rank alone, in the same bits.
    """
    return list(torch.arange(rows).split(size)[number() :: count()])


def in_order(part: Tensor, rows: int, size: int) -> Tensor:
    """What all ranks made of their `blocks`, in the order of the rows, bit by bit.

    Args:
        part: (n, ...) of this rank's blocks, one after the other; n may be 0.
    """
    if count() == 1:
        return part
    # As bytes, of which all but one rank have zeros: a sum of numbers would turn -0.0 into 0.0.
    flat = part.contiguous().view(len(part), math.prod(part.shape[1:])).view(torch.uint8)
    whole = flat.new_zeros(rows, flat.shape[1])
    places = torch.cat([torch.arange(0), *blocks(rows, size)])
    whole[places.to(part.device)] = flat
    return total(whole).view(part.dtype).view(rows, *part.shape[1:])


def total_by_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums, in float64, of what the ranks have under each name; some may have nothing."""
    if count() == 1:
        return tensors
    shapes: dict[str, list[int]] = {}
    for said in exchange(json.dumps({n: list(t.shape) for n, t in tensors.items()}).encode()):
        shapes |= json.loads(said)
    device = next((tensor.device for tensor in tensors.values()), None)
    if device is None and dist.get_backend() == "nccl":
        device = torch.device("cuda")
    nothing = partial(torch.zeros, dtype=torch.float64, device=device)
    return {
        name: total(tensors[name].double() if name in tensors else nothing(shape))
        for name, shape in shapes.items()
    }


def _by_type(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    yield from groups.values()


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
