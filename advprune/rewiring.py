"""Connections that come and go while a network trains: dropped here, grown there, counted always.

A layer computes with w m, and its parameter is zero wherever the mask m is off, so that nothing
that was dropped comes back with what it was. A weight that is grown starts at 1e-12: as good as
zero, and yet counted wherever weights are. What the loss would make of a weight that is off is the
gradient of w m, which a `Rewired` weight lets be seen: that of the parameter itself is masked.

What is dropped in a rewiring is not grown in the same one. So a layer with few weights off drops
few, and a layer that is whole stays as it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from advprune import ranks
from advprune.masking import Fixed, attach, maskings
from advprune.masks import keep_top

BORN = 1e-12  # what a weight is when it is grown
Draw = Callable[[str], torch.Generator]  # the generator of a layer, by the name of its weight


class Rewired(Fixed):
    """weight * mask.

    Args:
        watched: whether `take` will be called after every backward pass.
    """

    def __init__(self, mask: Tensor, watched: bool = False) -> None:
        super().__init__(mask)
        self._watched = watched
        self._seen: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        effective = super().forward(weight)
        # Attacks ask for no gradient of weights, and measurements for none at all.
        if self._watched and effective.requires_grad:
            effective.register_hook(self._see)
        return effective

    def _see(self, gradient: Tensor) -> None:
        self._seen = gradient if self._seen is None else self._seen + gradient

    def take(self) -> Tensor:
        """dL/d(w m) of all weights, on or off, summed since the last call and over all ranks.

        Zero where none came.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            seen = torch.zeros(self.mask.shape, device=self.mask.device)
        return ranks.total(seen)


def begin(net: nn.Module, counts: Mapping[str, int], draw: Draw, *, watched: bool = False) -> None:
    """Keep `counts` weights of each layer, drawn at random."""

    def rewired(name: str, weight: Tensor) -> Rewired:
        return Rewired(keep_top(drawn(weight.shape, draw(name)), counts[name]), watched)

    attach(net, rewired)
    for _, weight, rewiring in rewirings(net):
        impose(weight, rewiring, rewiring.mask)


def rewirings(net: nn.Module) -> Iterator[tuple[str, nn.Parameter, Rewired]]:
    """(weight name, the parameter beneath the mask, the mask at work) of every layer."""
    for name, layer, masking in maskings(net):
        if isinstance(masking, Rewired):
            yield name, layer.parametrizations.weight.original, masking  # pyright: ignore


@torch.no_grad()
def impose(weight: nn.Parameter, rewiring: Rewired, mask: Tensor) -> None:
    """Make `mask` the one in force; what it removes is forgotten."""
    grown = mask & ~rewiring.mask
    rewiring.mask.copy_(mask)
    weight.mul_(mask).masked_fill_(grown, BORN)


def drawn(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Scores at random, on the CPU."""
    return torch.rand(shape, generator=draw)


def dropped(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """The mask without the `count` smallest |w| among what it keeps."""
    magnitudes = torch.where(mask, weight.detach().abs(), -1.0)
    return keep_top(magnitudes, int(mask.sum()) - count)


def grown(mask: Tensor, scores: Tensor, count: int, barred: Tensor) -> Tensor:
    """The mask with the `count` largest of `scores` (not negative) that are neither on nor barred.

    Raises:
        ValueError: there are not so many.
    """
    free = ~(mask | barred)
    if not 0 <= count <= int(free.sum()):
        raise ValueError(f"grown: {count} of {int(free.sum())} weights that are off")
    return mask | keep_top(torch.where(free, scores.to(mask.device), -1.0), count)


def rewired(weight: Tensor, mask: Tensor, drop: int, scores: Tensor, count: int) -> Tensor:
    """The mask that drops `drop` weights by magnitude and grows by score to `count` in all."""
    left = dropped(weight, mask, drop)
    return grown(left, scores, count - int(left.sum()), barred=mask)


def portion(share: float, kept: int) -> int:
    """This share of so many, rounded up."""
    return math.ceil(share * kept - 1e-9)  # 0.1 * 30 must not be four


def droppable(wanted: int, kept: int, size: int, count: int) -> int:
    """How many of the `wanted` can be dropped on the way from `kept` weights to `count`.

    What is missing then is grown out of what was off before, and one weight always stays.
    """
    return min(max(wanted, kept - count), kept - 1, size - count)
