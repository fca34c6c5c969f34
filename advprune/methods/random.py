"""Random pruning: the control that any criterion has to beat."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.allocate import allocate
from advprune.masking import prunable_weights
from advprune.masks import keep_top
from advprune.method import Card, PruningMethod, State, Task, register
from advprune.repro import generator
from advprune.types import Masks


@register
class Random(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Random",
        paper="a control, used since LeCun et al., Optimal Brain Damage",
        year=1989,
        criterion="none",
        scope="local",
        summary="keeps weights drawn uniformly at random within each layer",
    )
    allocation: Literal["uniform", "erk"] = Field(default="erk", description="share of each layer")

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        weights = prunable_weights(net)
        kept = allocate(self.allocation, weights, self.sparsity)
        masks: Masks = {}
        for name, weight in weights.items():
            draw = generator(self.random_seed(task, name))
            masks[name] = keep_top(torch.rand(weight.shape, generator=draw), kept[name])
        return masks
