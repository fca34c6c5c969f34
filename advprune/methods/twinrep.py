"""TwinRep: weights trained as products, whose plain decay makes them sparse (Li et al. 2023).

    weight     w = u v m, element by element
    channel    W = (A V) m, with A (outputs, outputs) mixing the filters V of a layer

Weight decay stays the plain one, on the factors. For w = u v it is the L1 norm in disguise: the
least of (u^2 + v^2) / 2 over all factors of w is |w|, so that small products fade and large ones
hardly notice. A tenth into the run the smallest products go, of all layers together, once; the rest
of the run trains what is left. At the end the factors are multiplied out, and the network is a
plain one again.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.card import Card
from advprune.channel_units import ChannelUnits
from advprune.masking import attach, bare, detach, fix, prunable_weights
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.repro import generator
from advprune.structured import StructuredMethod
from advprune.types import Masks


class Twin(nn.Module):
    """w = u v m. The layer's own parameter is u; `start` is v at the start."""

    mask: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.twin = nn.Parameter(start)
        self.register_buffer("mask", torch.ones_like(start, dtype=torch.bool))

    def forward(self, u: Tensor) -> Tensor:
        return u * self.twin * self.mask


class Mixed(nn.Module):
    """W = (A V) m. The layer's own parameter is V (O, ...); A (O, O) starts at the identity."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(len(weight), dtype=weight.dtype))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, v: Tensor) -> Tensor:
        return (self.mix @ v.flatten(1)).view_as(v) * self.mask


@register
class TwinRep(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="TwinRep",
        paper="Li et al., Learning Adversarially Robust Sparse Networks via Weight "
        "Reparameterization, AAAI 2023",
        year=2023,
        entry="TwinRep",
        summary="trains weights as products that fade under decay, and cuts the smallest early",
        equations=(
            "weight: w = u v m, v uniform in (0, 1 / sqrt(fan_in)] at the start; channel: "
            "W = (A V) m with a square A for each layer",
            "plain weight decay on the factors, which for u v is the L1 norm of w",
            "a tenth into the run, once: the smallest |u v| of all layers go; of channels those "
            "whose filters have the smallest L2 norm",
            "the rest of the run trains the factors with m held; then they are multiplied out",
        ),
        departures=(
            "u starts at the weights as they are and has the sign, v at a draw as large as the "
            "released one but positive; A starts at the identity, as released at random",
            "a removed channel is also gone from what reads it, so that it can be cut out; the "
            "released code zeroes its row of A, once, and nothing that follows",
            "channels that only go together go together, and those of hidden linear layers take "
            "part; as released only convolutions do",
            "one learning-rate schedule; as released the rate falls tenfold at 70 and 85 %, and "
            "the epoch is chosen on the test split",
        ),
        pipeline="during",
        pretraining="none",
        finetuning="none",
        structure="US+S",
        criterion="RELWM",
    )
    moves_weights: ClassVar[bool] = True
    granularity: Literal["weight", "channel"] = Field(  # pyright: ignore
        default="weight",
        description="what is removed as one; channels, by what makes them, shrink the model",
    )
    prune_at: float = Field(
        default=0.1, ge=0, le=1, description="share of the run after which the smallest go"
    )

    def channel_units(self, net: nn.Module, task: Task) -> ChannelUnits:
        size = self.min_channels, self.round_to
        return ChannelUnits(net, task.shape, "filter", *size, self.budget)

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        self._select(net, task)  # refuses a budget that cannot be met now, not in mid-run

        def factor(name: str, weight: Tensor) -> nn.Module:
            if self.granularity == "channel":
                return Mixed(weight)
            draw = generator(self.random_seed(task, "twin", name))
            # In (0, 1]: a product of zero could not be told from a removed weight.
            share = 1.0 - torch.rand(weight.shape, generator=draw)
            return Twin(share / math.sqrt(weight[0].numel()))

        attach(net, factor)
        return {"pruned": torch.tensor(False)}

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        if progress.fraction >= self.prune_at:
            self._prune(net, state, task)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        self._prune(net, state, task)  # where there was no step at all
        return detach(net)

    def _prune(self, net: nn.Module, state: State, task: Task) -> None:
        if state["pruned"]:
            return
        state["pruned"].fill_(True)
        fix(net, self._select(net, task))

    def _select(self, net: nn.Module, task: Task) -> Masks:
        """The masks of the largest products as they stand."""
        weights = prunable_weights(net)
        with bare(net):
            units = self.units(net, task)
        norms = units.norms(weights)
        return units.select(norms, units.counts("global", norms, self.sparsity))
