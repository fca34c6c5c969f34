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
    if ranks.count() == 1:
        return
    with torch.no_grad():
        for gradients in _by_type(p.grad for p in parameters if p.grad is not None):
            sizes = [gradient.numel() for gradient in gradients]
            parts = total(torch.cat([g.reshape(-1) for g in gradients]))
            for gradient, part in zip(gradients, parts.split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient))


def average(tensors: Iterable[Tensor]) -> None:
    """Put in every floating tensor the mean over all ranks."""
    if ranks.count() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.copy_(total(tensor) / ranks.count())


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


def _by_type(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    yield from groups.values()
