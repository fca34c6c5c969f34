"""Magnitude pruning: remove the smallest weights (Han et al. 2015; LWM in HYDRA's tables).

Of channels, those whose weights have the smallest norm (filters: Li et al. 2017).
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from advprune.card import Card
from advprune.masking import prunable_weights
from advprune.method import State, Task, register
from advprune.structured import StructuredMethod
from advprune.types import Masks


@register
class Magnitude(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="Magnitude",
        paper="Han et al., Learning both Weights and Connections, NeurIPS 2015",
        year=2015,
        summary="removes the smallest weights, of the network or of each layer",
        equations=(
            "the lowest |theta| go; a layer's share by one order, uniform, ERK or LAMP",
            "filter: the lowest L2 norms of the weights that make a channel; channel: that read it",
        ),
        departures=(
            "one shot instead of the paper's iterations; every layer keeps at least one weight",
        ),
        structure="US+S",
        locality="L, G",
        criterion="LWM",
    )
    allocation: Literal["global", "uniform", "erk", "lamp"] = Field(
        default="global", description="share of each layer: global ranking, uniform, ERK or LAMP"
    )

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units = self.units(net, task)
        norms = units.norms(prunable_weights(net))
        return units.select(norms, units.counts(self.allocation, norms, self.sparsity))
