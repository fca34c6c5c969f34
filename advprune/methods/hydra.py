"""HYDRA: prune by learned importance scores under the robust objective (Sehwag et al. 2020).

Weights stay frozen; each has a score S. The mask of layer l keeps the k_l largest |S|,
with k_l fixed beforehand. Training minimises the robust loss of theta * M over S alone, with a
straight-through gradient, from scores in proportion to the weights, so that the search starts at
magnitude pruning. Batch norm keeps learning and counting, as in the released code.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.card import Card
from advprune.masking import (
    Scored,
    attach,
    current_masks,
    freeze_layers,
    prunable_weights,
    refresh,
)
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.types import Masks


@register
class Hydra(PruningMethod):
    card: ClassVar[Card] = Card(
        title="HYDRA",
        paper="Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, NeurIPS 2020",
        year=2020,
        entry="HYDRA",
        summary="learns which weights to keep under the robust loss, at fixed layer densities",
        equations=(
            "S = sqrt(6 / fan_in) theta / max|theta| at the start; theta stays frozen",
            "the mask keeps the k_l largest |S| of each layer; minimise L_robust(theta M) over S",
            "straight-through: dL/d|S| = theta dL/d(theta M), for kept and removed weights alike",
        ),
        departures=(
            "densities may follow ERK or LAMP, as in the later comparisons; uniform in the paper",
            "pseudo-labelled images (the paper's CIFAR-10 numbers need them) are given with "
            "--extra-data; fine-tuning begins at the last weights of the search, as released",
        ),
        pretraining="TRADES",
        finetuning="TRADES",
        locality="L",
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

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        refresh(net)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)
