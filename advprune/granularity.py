"""What is kept or removed as one: a weight, or a group of weights that share an index.

Scores and masks of groups have size one along the axes that a group spans, so that they broadcast
over the weight (O, I, kh, kw) of a convolution or (O, I) of a linear layer:

    weight   (O, I, kh, kw)      each weight by itself
    filter   (O, 1, 1, 1)        all that makes one output channel
    channel  (1, I, 1, 1)        all that reads one input channel
    column   (1, I, kh, kw)      one kernel position of one input channel, across the filters
"""

from typing import Literal

from torch import Tensor, nn

from advprune.models import logits_layer, prunable

Granularity = Literal["weight", "filter", "channel", "column"]

_SPANS: dict[str, tuple[int, ...]] = {
    "weight": (),
    "filter": (1, 2, 3),
    "channel": (0, 2, 3),
    "column": (0,),
}


def group_sum(values: Tensor, granularity: Granularity) -> Tensor:
    """The sum over each group, with size one along the axes that the group spans."""
    spans = [axis for axis in _SPANS[granularity] if axis < values.dim()]
    return values.sum(dim=spans, keepdim=True) if spans else values


def group_norm(weight: Tensor, granularity: Granularity) -> Tensor:
    """The L2 norm of each group: |theta| for single weights."""
    if granularity == "weight":
        return weight.abs()
    return group_sum(weight.square(), granularity).sqrt()


def exempt(net: nn.Module, granularity: Granularity) -> set[str]:
    """Layers whose groups are no one's to remove: classes of the output, colours of the input."""
    if granularity == "filter":
        return {logits_layer(net)}
    if granularity == "channel":
        return {next(iter(prunable(net)))}
    return set()
