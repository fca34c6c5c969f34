"""Random pruning: the control that any criterion has to beat."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.card import Card
from advprune.masking import prunable_weights
from advprune.masks import keep_best
from advprune.method import PruningMethod, State, Task, register
from advprune.repro import generator
from advprune.types import Masks


@register
class Random(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Random",
        paper="a control, as in Blalock et al., What is the State of Neural Network Pruning?",
        year=2020,
        summary="removes weights at random: what any criterion has to beat",
        equations=("every weight draws a number; the lowest go, of the network or of each layer",),
        locality="L, G",
        criterion="none",
    )
    allocation: Literal["global", "uniform", "erk", "lamp"] = Field(
        default="erk", description="share of each layer: one draw for all, uniform, ERK or LAMP"
    )

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        weights = prunable_weights(net)
        scores = {
            name: torch.rand(weight.shape, generator=generator(self.random_seed(task, name)))
            for name, weight in weights.items()
        }
        kept = allocate(self.allocation, weights, self.sparsity, scores=scores)
        return keep_best(scores, kept)
