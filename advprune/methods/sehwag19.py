"""Magnitude pruning in steps, with robust training in between (Sehwag et al. 2019).

What goes is chosen by size alone, without asking the robust loss; what is trained, before, between
and after, is the robust objective. The network is cut at once, tuned, cut again, until the last cut
lands at what was asked; the fine-tuning follows.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.card import Card
from advprune.events import Event
from advprune.masking import detach, fix, prunable_weights
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.structured import AS_ONE, StructuredMethod
from advprune.tickets import (
    attach_whole,
    norms_left,
    paced,
    rounds_over,
    sparsity_after,
    units_of,
)
from advprune.types import Masks


@register
class Sehwag19(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="Compact and robust",
        paper="Sehwag et al., Towards Compact and Robust Deep Neural Networks, 2019",
        year=2019,
        entry="Sehwag19",
        summary="cuts the smallest weights or filters in steps, with robust training in between",
        equations=(
            "cut k of K leaves (1 - sparsity)^(k / K): the lowest |theta|, or the filters of "
            "lowest L2 norm, go; of each layer, or of all together",
            "the first cut begins the search, the last ends it; in between the rest trains under "
            "attack in K - 1 rounds of one length, and the rate starts again in each",
        ),
        departures=(
            "number and spacing of the cuts are ours: the abstract says that the robust objective "
            "trains before and after, and that the cut does not look at it",
            "the benchmark's table says all layers together, its list each by itself, the abstract "
            "neither: both are offered, and the default is that of the authors' later baseline",
            "filters that only go together go together, with what reads them",
        ),
        shots="IT",
        structure="US+S",
        locality="L, G",
        criterion="LWM",
    )
    moves_weights: ClassVar[bool] = True
    granularity: Literal["weight", "filter"] = Field(  # pyright: ignore
        default="weight", description=AS_ONE
    )
    allocation: Literal["uniform", "global"] = Field(
        default="uniform", description="the same share of each layer, or one order for the network"
    )
    cuts: int = Field(default=5, ge=2, description="cuts, the first at the start of the search")

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        units = self.units(net, task)
        norms = units.norms(prunable_weights(net))
        # Refuses a budget that cannot be met now, not in mid-run.
        units.counts(self.allocation, norms, self.sparsity)
        attach_whole(net)
        state = {"cuts": torch.tensor(0)}
        self._cut(net, state, 1, task)
        return state

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        return self._cut(net, state, 1 + rounds_over(progress, self.cuts - 1), task)

    def pace(self, fraction: float) -> float:
        return paced(fraction, self.cuts - 1)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        self._cut(net, state, self.cuts, task)  # where there was no step at all
        return detach(net)

    def _cut(self, net: nn.Module, state: State, due: int, task: Task) -> Event | None:
        """Come to as many cuts as are due."""
        if due <= state["cuts"]:
            return None
        state["cuts"].fill_(due)
        units = units_of(self, net, task)
        norms = norms_left(net, units)
        sparsity = sparsity_after(due, self.cuts, self.sparsity)
        fix(net, units.select(norms, units.counts(self.allocation, norms, sparsity)))
        return Event.PRUNE
