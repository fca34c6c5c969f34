"""HYDRA: prune by learned importance scores under the robust objective (Sehwag et al. 2020).

Weights stay frozen; each has a score S. The mask of layer l keeps the k_l largest |S| (equation 2),
with k_l fixed beforehand. Training minimises the robust loss of theta * M over S alone, with a
straight-through gradient, from scores in proportion to the weights, so that the search starts at
magnitude pruning. Batch norm keeps learning and counting, as in the released code.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.masking import (
    Scored,
    attach,
    current_masks,
    freeze_layers,
    maskings,
    prunable_weights,
)
from advprune.method import Card, Optimisation, Progress, PruningMethod, State, Task, register
from advprune.types import Masks


@register
class Hydra(PruningMethod):
    card: ClassVar[Card] = Card(
        title="HYDRA",
        paper="Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks",
        year=2020,
        criterion="learned importance score",
        scope="local",
        summary="learns which weights to keep under the robust loss, at fixed layer densities",
        departures="the objective is the recipe's (TRADES in the paper); no extra data yet",
    )
    allocation: Literal["uniform", "erk", "lamp"] = Field(
        default="uniform",
        description="layer densities, fixed before the search; uniform in the paper",
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        kept = allocate(self.allocation, prunable_weights(net), self.sparsity)
        freeze_layers(net)
        attach(net, lambda name, weight: Scored(weight, kept[name]))
        return {}

    def update(self, net: nn.Module, state: State, progress: Progress) -> None:
        for _, _, masking in maskings(net):
            assert isinstance(masking, Scored)
            masking.refresh()

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)
