"""Magnitude pruning: remove the smallest weights (Han et al. 2015; LWM in HYDRA's tables)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.masking import prunable_weights
from advprune.masks import keep_top
from advprune.method import Card, PruningMethod, State, Task, register
from advprune.types import Masks


@register
class Magnitude(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Magnitude (LWM)",
        paper="Han et al., Learning both Weights and Connections for Efficient Neural Networks",
        year=2015,
        criterion="|theta|",
        scope="global",
        summary="keeps the largest weights, of the network or of each layer by an allocation rule",
    )
    allocation: Literal["global", "uniform", "erk", "lamp"] = Field(
        default="global", description="share of each layer: global ranking, uniform, ERK or LAMP"
    )

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        weights = prunable_weights(net)
        kept = allocate(self.allocation, weights, self.sparsity)
        return {name: keep_top(weight.abs(), kept[name]).cpu() for name, weight in weights.items()}
