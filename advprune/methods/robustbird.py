"""Robust Bird: the mask of magnitude, as soon as it no longer moves (Chen et al. 2022).

After each epoch of a cheap training the weights say which of them would go. Once that mask has been
nearly the same for some epochs, training stops, and they go: nothing is put back. The adversarial
training is what follows, with the mask held.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.batches import Batch
from advprune.card import Card
from advprune.events import Event
from advprune.masking import prunable_weights
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.objectives import Loss, Objective
from advprune.types import Masks


@register
class RobustBird(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Robust Bird",
        paper="Chen et al., Sparsity Winning Twice: Better Robust Generalization from More "
        "Efficient Training, ICLR 2022",
        year=2022,
        entry="RobustBird",
        summary="stops a cheap training once its magnitude mask is stable, and cuts",
        equations=(
            "after each epoch: m = the mask of the largest |theta| of all layers together",
            "distance(m, m') = share of all weights in which they differ; stop once m is within "
            "0.08 of each of the 4 masks before it",
            "then the lowest |theta| go, without going back; the fine-tuning trains what is left",
            "two masks of one sparsity differ in twice the smaller of density and sparsity at "
            "most: from 0.96 on the search always ends after the fifth epoch",
        ),
        departures=(
            "m is over all prunable weights, which are those that are cut; as released it is over "
            "convolutions alone",
            "one cosine schedule; as released the rate falls tenfold after epochs 50 and 150",
            "counts are exact, and every layer keeps at least one weight",
        ),
        pipeline="before",
        pretraining="NT",
        criterion="LWM",
    )
    moves_weights: ClassVar[bool] = True
    training: Literal["natural", "fgsm-rs", "robust"] = Field(
        default="natural", description="what the search minimises; robust is the run's objective"
    )
    window: int = Field(default=5, ge=2, description="epochs whose masks must agree")
    threshold: float = Field(
        default=0.08, ge=0, le=1, description="share of weights in which they may differ"
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        masks = self._select(net, task)  # refuses a budget that cannot be met before the run
        total = sum(mask.numel() for mask in masks.values())
        return {
            "masks": torch.zeros(self.window - 1, total, dtype=torch.bool),
            "epochs": torch.tensor(0),
        }

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        return self._objective(task)(net, batch)

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        if not progress.ends_epoch:
            return None
        masks = self._select(net, task)
        mask = torch.cat([masks[name].flatten() for name in masks])
        stable = bool(distances(state["masks"], mask).max() <= self.threshold)
        state["masks"].copy_(torch.cat([state["masks"][1:], mask[None]]))
        state["epochs"] += 1
        return Event.STOP if stable and state["epochs"] >= self.window else None

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return self._select(net, task)

    def _objective(self, task: Task) -> Objective:
        if self.training == "robust":
            return task.objective
        return replace(task.objective, name=self.training)

    def _select(self, net: nn.Module, task: Task) -> Masks:
        units = self.units(net, task)
        norms = units.norms(prunable_weights(net))
        return units.select(norms, units.counts("global", norms, self.sparsity))


def distances(masks: Tensor, mask: Tensor) -> Tensor:
    """float64 (n,): the shares in which each of masks (n, total) differs from one of (total,)."""
    return (masks != mask).sum(dim=1).double() / mask.numel()
