"""Sums over ranks of what each has made of its rows.

Gradients are summed after the backward pass, not during it as `DistributedDataParallel` does: of
the ten backward passes and more of an adversarial step only the last is of weights, so that there
is next to nothing to hide the communication behind. In return a method may call the network as it
likes.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from advprune import ranks
from advprune.ranks import total


def total_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of the parameters that have one, in place, in one message per type."""
    _sum_up([p.grad for p in parameters if p.grad is not None])


def average(tensors: Iterable[Tensor]) -> None:
    """Put in every floating tensor the mean over all ranks, in one message per type."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    _sum_up(floating)
    for tensor in floating:
        tensor.div_(ranks.count())


def total_by_name(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The sums, in float64, of what the ranks have under each name; some may have nothing."""
    if ranks.count() == 1:
        return tensors
    shapes: dict[str, list[int]] = {}
    for said in ranks.exchange(json.dumps({n: list(t.shape) for n, t in tensors.items()}).encode()):
        shapes |= json.loads(said)
    nothing = partial(torch.zeros, dtype=torch.float64, device=device)
    return {
        name: total(tensors[name].double() if name in tensors else nothing(shape))
        for name, shape in shapes.items()
    }


@torch.no_grad()
def _sum_up(tensors: list[Tensor]) -> None:
    """Put the sums over all ranks in place of what each has, in one message per type."""
    if ranks.count() == 1:
        return
    for alike in _by_type(tensors):
        sizes = [tensor.numel() for tensor in alike]
        parts = total(torch.cat([tensor.reshape(-1) for tensor in alike]))
        for tensor, part in zip(alike, parts.split(sizes), strict=True):
            tensor.copy_(part.view_as(tensor))


def _by_type(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    yield from groups.values()
