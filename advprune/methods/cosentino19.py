"""Robust lottery tickets: train, cut each layer, begin again (Cosentino et al. 2019).

The lottery ticket's rounds under adversarial training. Each round trains what is left, removes a
share of the smallest weights of each layer, and puts the others back to theta_0; the layer of the
logits loses about half that share. The last ticket is trained by the fine-tuning, as all before it.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from advprune.allocate import distribute
from advprune.card import Card
from advprune.events import Event
from advprune.masking import current_masks, fix, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.models import logits_layer
from advprune.tickets import (
    attach_whole,
    norms_left,
    paced,
    remember,
    rewind,
    rounds_over,
    sparsity_after,
)
from advprune.types import Masks

# The paper's shares per round are 20 %, and 10 % of the logits layer: 0.9 = 0.8 ^ SLOWER.
SLOWER = math.log(0.9) / math.log(0.8)


@register
class Cosentino19(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Robust tickets",
        paper="Cosentino et al., The Search for Sparse, Robust Neural Networks, NeurIPS workshop "
        "2019",
        year=2019,
        entry="Cosentino19",
        summary="rounds of adversarial training, a cut of each layer, and a return to the start",
        equations=(
            "theta_0 is remembered; each of K rounds trains theta m under attack",
            "round k leaves d = (1 - sparsity)^(k / K): the lowest |theta| of each layer go; the "
            "layer of the logits keeps d^0.47, as 0.9 = 0.8^0.47",
            "what is left goes back to theta_0, and so does batch norm; the rate starts again",
            "the fine-tuning trains the last ticket from theta_0",
        ),
        departures=(
            "shares follow from sparsity and rounds; the paper's are 20 % of each layer and 10 % "
            "of the last, 20 times, which K = 10 comes near at sparsity 0.9",
            "trained as the recipe says; the paper by Adam, on clean and adversarial images half "
            "and half, a multilayer perceptron on digits",
            "batch norm, which the paper's network lacks, is rewound with its statistics",
        ),
        pipeline="before",
        shots="IT",
        locality="L",
        criterion="LWM",
    )
    rounds: int = Field(default=10, ge=1, description="cuts, each after as long a training")

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        self._counts(net, self.sparsity)  # refuses a budget that cannot be met now, not in mid-run
        state = remember(net)
        attach_whole(net)
        return {"cuts": torch.tensor(0), **state}

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        return self._cut(net, state, rounds_over(progress, self.rounds), task)

    def pace(self, fraction: float) -> float:
        return paced(fraction, self.rounds)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        self._cut(net, state, self.rounds, task)  # where there was no step at all
        return current_masks(net)

    def _cut(self, net: nn.Module, state: State, due: int, task: Task) -> Event | None:
        """Come to as many cuts as are due."""
        if due <= state["cuts"]:
            return None
        state["cuts"].fill_(due)
        units = self.units(net, task)
        counts = self._counts(net, sparsity_after(due, self.rounds, self.sparsity))
        fix(net, units.select(norms_left(net, units), counts))
        rewind(net, state)
        return Event.PRUNE | Event.REWIND

    def _counts(self, net: nn.Module, sparsity: float) -> dict[str, int]:
        """The same density everywhere, but for the layer of the logits, which loses it slower."""
        sizes = {name: weight.numel() for name, weight in prunable_weights(net).items()}
        total = kept_count(sum(sizes.values()), sparsity)
        head = sizes.get(logits_layer(net), 0)
        slow = min(head * (1.0 - sparsity) ** SLOWER, total)
        density = (total - slow) / max(sum(sizes.values()) - head, 1)
        wanted = {name: density * size for name, size in sizes.items()}
        if head:
            wanted[logits_layer(net)] = slow
        return distribute(wanted, sizes, total)
