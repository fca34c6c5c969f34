"""HARP: learn how much to prune each layer, and what, under the robust objective (Zhao 2023).

Each layer l has scores S_l, as in HYDRA, and one rate r_l. The rate is the density

    a_l = (1 - a_min) sigmoid(r_l) + a_min,   a_min = floor * a_t

and its gradient is the straight-through sum over the mask, dL/da_l = sum(theta * dL/d(theta M)).
Training minimises L_robust + gamma L_hw with L_hw = max(sum(n_l a_l) / (a_t sum n_l) - 1, 0).
`learn=rates` (HARP-r) fixes the scores, and so prunes each layer by magnitude; `learn=scores`
(HARP-S) fixes the densities at the target, and so is HYDRA with the allocation of the start.

How a search comes down from a dense start, by its length, is in `annealing`.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.annealing import Annealed, Annealing
from advprune.batches import Batch
from advprune.card import Card
from advprune.errors import Refused
from advprune.masking import (
    Scored,
    attach,
    current_masks,
    freeze_layers,
    prunable_weights,
    refresh,
)
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.objectives import Loss
from advprune.rates import DENSEST, Rated, land, overrun, project, rated
from advprune.types import Masks

OVERSHOOT = 1.1  # the search itself must come this close to the target (gamma schedule)


@register
class Harp(PruningMethod):
    card: ClassVar[Card] = Card(
        title="HARP",
        paper="Zhao & Wressnegger, Holistic Adversarially Robust Pruning, ICLR 2023",
        year=2023,
        entry="HARP",
        summary="learns layer densities and which weights to keep, under the robust loss",
        equations=(
            "a_l = (1 - a_min) sigmoid(r_l) + a_min, a_min = 0.1 a_t; the mask keeps the a_l n_l "
            "largest |S|; scores start in proportion to the weights, which stay frozen",
            "minimise L_robust(theta M) + gamma max(sum n_l a_l / (a_t sum n_l) - 1, 0) over r, S",
            "straight-through: dL/d|S| = theta dL/d(theta M), and dL/da_l is its sum",
            "gamma grows by 0.01 an epoch until an epoch ends on target, then stays",
        ),
        departures=(
            "selection never sees the test split; layers are known by name, where the released "
            "tables mix two orders",
            "runs shorter than a quarter of the paper's steps anneal the budget instead of gamma; "
            "the last projection lands on the exact count",
            "learn=scores fixes the densities at the target; the released code leaves them at 0.73",
        ),
    )

    learn: Literal["both", "rates", "scores"] = Field(
        default="both", description="HARP, HARP-r (scores fixed) or HARP-S (densities fixed)"
    )
    start_allocation: Literal["erk", "uniform", "lamp"] = Field(
        default="erk", description="layer densities at the start, by layer name"
    )
    start_density: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="density at the start; 0.1 as in the paper, or more if denser",
    )
    floor: float = Field(
        default=0.1, gt=0, lt=1, description="alpha: least layer density, times a_t"
    )
    annealing: Annealed = Field(
        default="auto", description="what is annealed: gamma (the paper) or the budget (short runs)"
    )
    gamma: float | None = Field(
        default=None,
        gt=0,
        description="growth of the weight of L_hw per epoch; 0.01 at the paper's length",
    )
    rate_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the rates, relative to the scores'"
    )
    rate_weight_decay: float = Field(default=5e-4, ge=0, description="weight decay of the rates")
    ramp: float = Field(
        default=0.5, gt=0, le=1, description="share of the steps that anneal the budget"
    )

    @property
    def target(self) -> float:
        return 1.0 - self.sparsity

    @property
    def least(self) -> float:
        """a_min."""
        return self.floor * self.target

    def schedule(self, steps: int) -> Annealing:
        return Annealing(steps, self.target, self.annealing, self.start_density, self.ramp)

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        if self.least >= DENSEST:
            raise Refused(
                f"harp: floor {self.floor:g} leaves no room at sparsity {self.sparsity:g}; lower it"
            )
        weights = prunable_weights(net)
        schedule = self.schedule(optimisation.steps)
        # Refuses a target that no layer-wise budget can meet now, not after the search.
        fixed = allocate(self.start_allocation, weights, self.sparsity)
        kept = allocate(self.start_allocation, weights, 1.0 - schedule.first_density)
        freeze_layers(net)

        def masking(name: str, weight: Tensor) -> Scored:
            if self.learn == "scores":
                return Scored(weight, fixed[name])
            density = max(kept[name] / weight.numel(), self.least * (1 + 1e-3))
            made = Rated(weight, kept[name], density, self.least)
            made.scores.requires_grad_(self.learn == "both")
            return made

        attach(net, masking)
        growth = schedule.gamma if self.gamma is None else self.gamma
        return {
            "gamma": torch.tensor(growth),
            "growth": torch.tensor(growth),
            "frozen": torch.tensor(False),
            "budget_annealed": torch.tensor(schedule.of_budget),
        }

    def groups(self, net: nn.Module, optimisation: Optimisation) -> list[dict[str, Any]]:
        rates = [masking.rate for masking in rated(net).values()]
        mine = {id(rate) for rate in rates}
        rest = [p for p in net.parameters() if p.requires_grad and id(p) not in mine]
        default = self.schedule(optimisation.steps).rate_lr
        scale = default if self.rate_lr is None else self.rate_lr
        learned = {"lr": optimisation.lr * scale, "weight_decay": self.rate_weight_decay}
        return [{"params": rest}, {"params": rates, **learned}]

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        if self.learn == "scores" or state["budget_annealed"]:
            return robust
        gamma = state["gamma"].to(robust.value.device)
        return Loss(robust.value + gamma * overrun(rated(net), self.target), robust.correct)

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress) -> None:
        if self.learn == "scores":
            refresh(net)
            return
        layers = rated(net)
        if state["budget_annealed"]:
            budget = self.schedule(progress.steps).budget(progress.fraction)
            project(layers, budget, only_down=True)
        elif progress.step % progress.epoch_steps == 0 and not state["frozen"]:
            if round(float(overrun(layers, self.target)), 4) == 0.0:
                state["frozen"].fill_(True)
            else:
                state["gamma"] += state["growth"]
        for masking in layers.values():
            masking.follow()

    @torch.no_grad()
    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        """Project the rates onto the target and select the last masks.

        Raises:
            Refused: the search ended so far above the target that the projection would decide.
        """
        if self.learn == "scores":
            return current_masks(net)
        layers = rated(net)
        over = 1.0 + float(overrun(layers, self.target))
        if over > OVERSHOOT:
            raise Refused(
                f"harp: the search ended at {over:.2f} times the target density "
                f"{self.target:g}; train longer (--set prune.epochs=N) or raise --gamma"
            )
        land(layers, self.sparsity)
        return current_masks(net)
