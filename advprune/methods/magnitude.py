"""Magnitude pruning: remove the smallest weights (Han et al. 2015; LWM in HYDRA's tables)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.card import Card
from advprune.masking import prunable_weights
from advprune.masks import keep_best
from advprune.method import PruningMethod, State, Task, register
from advprune.types import Masks


@register
class Magnitude(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Magnitude",
        paper="Han et al., Learning both Weights and Connections, NeurIPS 2015",
        year=2015,
        summary="removes the smallest weights, of the network or of each layer",
        equations=("the lowest |theta| go; a layer's share by one order, uniform, ERK or LAMP",),
        departures=(
            "one shot instead of the paper's iterations; every layer keeps at least one weight",
        ),
        locality="L, G",
        criterion="LWM",
    )
    allocation: Literal["global", "uniform", "erk", "lamp"] = Field(
        default="global", description="share of each layer: global ranking, uniform, ERK or LAMP"
    )

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        weights = prunable_weights(net)
        kept = allocate(self.allocation, weights, self.sparsity)
        return keep_best({name: weight.abs() for name, weight in weights.items()}, kept)
