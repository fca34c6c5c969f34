"""RST: a robust subnetwork of a random network, whose weights are never trained (Fu et al. 2021).

A negative control: the search of HYDRA without anything worth keeping. Every weight of a layer is
set to plus or minus one constant, batch norm has no parameters, and scores drawn at random learn
which weights to keep, at the same density in every layer. The paper does not fine-tune.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

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
from advprune.models import prunable
from advprune.models.freezing import is_frozen
from advprune.repro import generator
from advprune.types import Masks


@register
class Rst(PruningMethod):
    card: ClassVar[Card] = Card(
        title="RST",
        paper="Fu et al., Drawing Robust Scratch Tickets, NeurIPS 2021",
        year=2021,
        entry="RST",
        summary="learns which weights of a random network to keep: a negative control",
        equations=(
            "theta = +-sqrt(2 / (fan_in density)), signs at random, never trained; biases zero",
            "mask: the k_l largest |S| of each layer, straight-through gradient to |S|",
            "S minimises the robust loss; no fine-tuning (--set finetune.epochs=0)",
        ),
        departures=("random switching between subnetworks is left out: a moving target, no model",),
        pipeline="before",
        pretraining="AT",
        finetuning="none",
        locality="L",
        criterion="LIS",
    )
    moves_weights: ClassVar[bool] = True

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        kept = allocate("uniform", prunable_weights(net), self.sparsity)
        self._randomise(net, task)
        freeze_layers(net)

        def scored(name: str, weight: Tensor) -> Scored:
            masking = Scored(weight, kept[name])
            bound = 1.0 / math.sqrt(weight[0].numel())
            draw = generator(self.random_seed(task, "scores", name))
            scores = bound * (2.0 * torch.rand(weight.shape, generator=draw) - 1.0)
            masking.scores.data.copy_(scores)
            masking.refresh()
            return masking

        attach(net, scored)
        return {}

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        refresh(net)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)

    @torch.no_grad()
    def _randomise(self, net: nn.Module, task: Task) -> None:
        """Forget what was trained: signed constants, and batch norm as a plain normalisation."""
        for name, layer in prunable(net).items():
            draw = generator(self.random_seed(task, "signs", name))
            signs = 2.0 * torch.randint(2, layer.weight.shape, generator=draw) - 1.0
            constant = math.sqrt(2.0 / (layer.weight[0].numel() * (1.0 - self.sparsity)))
            layer.weight.copy_(constant * signs)
            if layer.bias is not None:
                layer.bias.zero_()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not is_frozen(module):
                module.reset_parameters()
                module.requires_grad_(False)
