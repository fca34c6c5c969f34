"""HARP: learn how much to prune each layer, and what, under the robust objective (Zhao 2023).

Each layer l has scores S_l, as in HYDRA, and one rate r_l. The rate is the density

    a_l = (1 - a_min) sigmoid(r_l) + a_min,   a_min = floor * a_t                (section 3.2)

and its gradient is the straight-through sum over the mask, dL/da_l = sum(theta * dL/d(theta M)).
Training minimises L_robust + gamma L_hw with L_hw = max(sum(n_l a_l) / (a_t sum n_l) - 1, 0).

Long schedules follow the paper: rates start at `start_density`, the weight of L_hw grows by gamma
every epoch until an epoch ends on target, and stays there. A few hundred steps are too short for
that ramp (the rates collapse), so there the budget itself is annealed: a cubic from the starting
density to a_t over `ramp` of the steps, kept by shifting all rates alike. All of it is a function
of the number of steps T, with T_paper = 7,820 (`PAPER_STEPS`):

    what is annealed     the budget where T < T_paper / 4, else gamma
    starting density     0.1 ^ (T / T_paper) for the budget (the shorter, the denser), 0.1 for gamma
    rates' learning rate min(1, T / T_paper), relative to the scores'
    gamma                0.01 max(1, T_paper / T), so that it can reach the target in time
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.allocate import allocate, distribute
from advprune.errors import Refused
from advprune.masking import (
    Scored,
    attach,
    current_masks,
    freeze_layers,
    maskings,
    prunable_weights,
)
from advprune.masks import kept_count
from advprune.method import Card, Optimisation, Progress, PruningMethod, State, Task, register
from advprune.objectives import Batch, Loss
from advprune.rates import DENSEST, density_of, rate_of, shift_to_budget
from advprune.types import Masks

PAPER_STEPS = 7_820  # 20 epochs of 391 batches, the paper's search on CIFAR-10
SHORT = 0.25  # below this share of the paper's steps, the budget is annealed instead of gamma
OVERSHOOT = 1.1  # the search itself must come this close to the target (gamma schedule)


class Rated(Scored):
    """Scores plus a learned density; the gradient of the mask flows into both."""

    def __init__(self, weight: Tensor, keep: int, density: float, floor: float) -> None:
        super().__init__(weight, keep)
        self.floor = floor
        self.rate = nn.Parameter(torch.tensor(rate_of(density, floor)))

    def density(self) -> Tensor:
        return density_of(self.rate, self.floor)

    def surrogate(self) -> Tensor:
        # Broadcast over the mask, so the gradient of the density is the sum over the layer.
        return super().surrogate() + self.density()


@register
class Harp(PruningMethod):
    card: ClassVar[Card] = Card(
        title="HARP",
        paper="Zhao & Wressnegger, Holistic Adversarially Robust Pruning",
        year=2023,
        criterion="learned importance score and learned layer density",
        scope="global",
        summary="learns layer densities and which weights to keep, under the robust loss",
        departures=(
            "selection never sees the test split; runs shorter than a quarter of the paper's steps "
            "anneal the budget instead of gamma; the last projection lands on the exact count"
        ),
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
    annealing: Literal["auto", "gamma", "budget"] = Field(
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

    def first_density(self, steps: int) -> float:
        """Density before the first step, never below the target."""
        if self.start_density is not None:
            return max(self.start_density, self.target)
        length = steps / PAPER_STEPS if self.anneals_budget(steps) else 1.0
        return max(0.1**length, self.target)

    def anneals_budget(self, steps: int) -> bool:
        if self.annealing == "auto":
            return steps < SHORT * PAPER_STEPS
        return self.annealing == "budget"

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        if self.least >= DENSEST:
            raise Refused(
                f"harp: floor {self.floor:g} leaves no room at sparsity {self.sparsity:g}; lower it"
            )
        weights = prunable_weights(net)
        # Refuses a target that no layer-wise budget can meet now, not after the search.
        allocate(self.start_allocation, weights, self.sparsity)
        kept = allocate(
            self.start_allocation, weights, 1.0 - self.first_density(optimisation.steps)
        )
        freeze_layers(net)

        def rated(name: str, weight: Tensor) -> Rated:
            density = max(kept[name] / weight.numel(), self.least * (1 + 1e-3))
            return Rated(weight, kept[name], density, self.least)

        attach(net, rated)
        default = 0.01 * max(1.0, PAPER_STEPS / max(1, optimisation.steps))
        growth = default if self.gamma is None else self.gamma
        budget = self.anneals_budget(optimisation.steps)
        return {
            "gamma": torch.tensor(growth),
            "growth": torch.tensor(growth),
            "frozen": torch.tensor(False),
            "budget_annealed": torch.tensor(budget),
        }

    def groups(self, net: nn.Module, optimisation: Optimisation) -> list[dict[str, Any]]:
        rates = [masking.rate for _, masking in _rated(net)]
        mine = {id(rate) for rate in rates}
        rest = [p for p in net.parameters() if p.requires_grad and id(p) not in mine]
        default = min(1.0, optimisation.steps / PAPER_STEPS)
        scale = default if self.rate_lr is None else self.rate_lr
        return [
            {"params": rest},
            {
                "params": rates,
                "lr": optimisation.lr * scale,
                "weight_decay": self.rate_weight_decay,
            },
        ]

    def overrun(self, net: nn.Module) -> Tensor:
        """L_hw on the densities that the rates stand for, not on counted masks."""
        spent = torch.stack([m.mask.numel() * m.density() for _, m in _rated(net)]).sum()
        size = sum(masking.mask.numel() for _, masking in _rated(net))
        return (spent / (self.target * size) - 1.0).clamp_min(0.0)

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        if state["budget_annealed"]:
            return robust
        gamma = state["gamma"].to(robust.value.device)
        return Loss(robust.value + gamma * self.overrun(net), robust.correct)

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress) -> None:
        if state["budget_annealed"]:
            self._shift(net, self.budget(progress), only_down=True)
        elif progress.step % progress.epoch_steps == 0 and not state["frozen"]:
            if round(float(self.overrun(net)), 4) == 0.0:
                state["frozen"].fill_(True)
            else:
                state["gamma"] += state["growth"]
        for _, masking in _rated(net):
            size = masking.mask.numel()
            masking.keep = max(1, kept_count(size, 1.0 - float(masking.density())))
            masking.refresh()

    def budget(self, progress: Progress) -> float:
        """Density allowed now: cubic from the first to the target (Zhu & Gupta 2017, eq. 1)."""
        left = max(0.0, 1.0 - progress.fraction / self.ramp)
        first = self.first_density(progress.steps)
        return self.target + (first - self.target) * left**3

    @torch.no_grad()
    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        """Project the rates onto the target, share the remainder, select the last masks.

        Raises:
            Refused: the search ended so far above the target that the projection would decide.
        """
        over = 1.0 + float(self.overrun(net))
        if over > OVERSHOOT:
            raise Refused(
                f"harp: the search ended at {over:.2f} times the target density "
                f"{self.target:g}; train longer (--set prune.epochs=N) or raise --gamma"
            )
        self._shift(net, self.target, only_down=False)
        sizes = {name: masking.mask.numel() for name, masking in _rated(net)}
        total = kept_count(sum(sizes.values()), self.sparsity)
        wanted = {name: sizes[name] * float(masking.density()) for name, masking in _rated(net)}
        kept = distribute(wanted, sizes, total)
        for name, masking in _rated(net):
            masking.keep = kept[name]
            masking.refresh()
        return current_masks(net)

    def _shift(self, net: nn.Module, density: float, *, only_down: bool) -> None:
        rates = {name: float(masking.rate) for name, masking in _rated(net)}
        sizes = {name: masking.mask.numel() for name, masking in _rated(net)}
        shift = shift_to_budget(rates, sizes, self.least, density * sum(sizes.values()))
        if shift < 0.0 or not only_down:
            for _, masking in _rated(net):
                masking.rate.add_(shift)


def _rated(net: nn.Module) -> list[tuple[str, Rated]]:
    return [(name, m) for name, _, m in maskings(net) if isinstance(m, Rated)]
