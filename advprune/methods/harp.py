"""HARP: learn how much to prune each layer, and what, under the robust objective (Zhao 2023).

Each layer l has scores S_l, as in HYDRA, and one rate r_l. The rate is the density

    a_l = (1 - a_min) sigmoid(r_l) + a_min,   a_min = floor * a_t

and its gradient is the straight-through sum over the mask, dL/da_l = sum(theta * dL/d(theta M)).
Training minimises L_robust + gamma L_hw with L_hw = max(sum(n_l a_l) / (a_t sum n_l) - 1, 0).
`learn=rates` (HARP-r) fixes the scores, and so prunes each layer by magnitude; `learn=scores`
(HARP-S) fixes the densities at the target, and so is HYDRA with the allocation of the start.

Of channels (`granularity=channel`) each group that goes together has one score for every channel
and one rate; S starts in proportion to the L1 norms of the weights that read the channel, and the
budget counts multiply-accumulates: those of the network with every group at the target density,
about a_t squared. Of two in four (`2:4`) only scores are left to learn.

How a search comes down from a dense start, by its length, is in `annealing`.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.annealing import Annealed, Annealing
from advprune.batches import Batch
from advprune.card import Card
from advprune.channel_masking import attach_channels, detach_channels, learned
from advprune.channels import ChannelGroup
from advprune.cost import of_macs
from advprune.errors import Refused
from advprune.masking import (
    Scored,
    attach,
    current_masks,
    freeze_layers,
    prunable_weights,
    refresh,
)
from advprune.masks import kept_count
from advprune.method import Progress, State, Task, register
from advprune.objectives import Loss
from advprune.optimisation import Optimisation, ParameterGroups
from advprune.rates import DENSEST, Rated, cost_of, follow, land, overrun, project, rated
from advprune.semi_structured import ScoredFours, TwoOfFour
from advprune.structured import AS_ONE, StructuredMethod
from advprune.types import Masks

OVERSHOOT = 1.1  # the search itself must come this close to the target (gamma schedule)


@register
class Harp(StructuredMethod):
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
            "channels: L_hw counts multiply-accumulates, both widths of a layer scaled by a",
            "gamma grows by 0.01 an epoch until an epoch ends on target, then stays",
        ),
        departures=(
            "selection never sees the test split; layers are known by name, where the released "
            "tables mix two orders",
            "runs shorter than a quarter of the paper's steps anneal the budget instead of gamma; "
            "the last projection lands on the exact count",
            "learn=scores fixes the densities at the target; the released code leaves them at 0.73",
            "channels: one mask for each group that goes together, colours and logits exempt, L1 "
            "norms of what reads a channel, widths rounded; the released masks are each layer's "
            "own, include colours and crash on ResNet-18",
        ),
        structure="US+S",
    )

    budget: ClassVar[Literal["channels", "macs"]] = "macs"
    granularity: Literal["weight", "channel", "2:4"] = Field(  # pyright: ignore
        default="weight", description=AS_ONE
    )
    learn: Literal["both", "rates", "scores"] = Field(
        default="both", description="HARP, HARP-r (scores fixed) or HARP-S (densities fixed)"
    )
    start_allocation: Literal["erk", "uniform", "lamp"] = Field(
        default="erk", description="layer densities at the start, by layer name"
    )
    start_density: float | None = Field(
        default=None, gt=0, le=1, description="density at the start; 0.1 as in the paper, or denser"
    )
    floor: float = Field(
        default=0.1, gt=0, lt=1, description="alpha: least layer density, times a_t"
    )
    annealing: Annealed = Field(
        default="auto", description="what is annealed: gamma (the paper) or the budget (short runs)"
    )
    gamma: float | None = Field(
        default=None, gt=0, description="growth of L_hw's weight per epoch; 0.01 in the paper"
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
    def least(self) -> float:  # a_min
        return self.floor * self.target

    def schedule(self, steps: int) -> Annealing:
        return Annealing(steps, self.target, self.annealing, self.start_density, self.ramp)

    @property
    def fixed(self) -> bool:  # densities are given, only scores are learned
        return self.learn == "scores" or self.granularity == "2:4"

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        if self.least >= DENSEST:
            raise Refused(
                f"harp: floor {self.floor:g} leaves no room at sparsity {self.sparsity:g}; lower it"
            )
        schedule = self.schedule(optimisation.steps)
        freeze_layers(net)
        if self.granularity == "channel":
            cost = self._mask_channels(net, task, schedule)
        else:
            cost = {}
            self._mask_weights(net, schedule)
        growth = schedule.gamma if self.gamma is None else self.gamma
        return {
            "gamma": torch.tensor(growth),
            "growth": torch.tensor(growth),
            "frozen": torch.tensor(False),
            "budget_annealed": torch.tensor(schedule.of_budget),
            **cost,
        }

    def _mask_weights(self, net: nn.Module, schedule: Annealing) -> None:
        if self.granularity == "2:4":
            eligible = TwoOfFour(net).sizes
            attach(net, lambda name, w: (ScoredFours if name in eligible else Scored)(w, w.numel()))
            return
        weights = prunable_weights(net)
        # Refuses a target that no layer-wise budget can meet now, not after the search.
        fixed = allocate(self.start_allocation, weights, self.sparsity)
        kept = allocate(self.start_allocation, weights, 1.0 - schedule.first_density)

        def masking(name: str, weight: Tensor) -> Scored:
            if self.fixed:
                return Scored(weight, fixed[name])
            return self._rated(weight, kept[name], kept[name] / weight.numel())

        attach(net, masking)

    def _mask_channels(self, net: nn.Module, task: Task, schedule: Annealing) -> State:
        """Attach masks to all groups of channels; returns what they cost, as tensors."""
        units = self.channel_units(net, task)
        weights = prunable_weights(net)
        norms = units.pool({name: weight.abs() for name, weight in weights.items()})
        kept = units.counts("uniform", norms, self.sparsity)
        first = schedule.first_density if self.start_density or schedule.of_budget else 1.0

        def masking(group: ChannelGroup) -> Scored:
            norm = norms[group.name]
            if self.fixed:
                return Scored(norm, kept[group.name])
            return self._rated(norm, kept_count(len(norm), 1.0 - first), first)

        attach_channels(net, units.groups, masking)
        by_name = {group.name: group for group in units.groups}
        cost = of_macs(net, [by_name[name] for name in learned(net)], task.shape)
        return cost.tensors()

    def _rated(self, weight: Tensor, keep: int, density: float) -> Rated:
        made = Rated(weight, keep, max(density, self.least * (1 + 1e-3)), self.least)
        made.scores.requires_grad_(self.learn == "both")
        return made

    def groups(self, net: nn.Module, optimisation: Optimisation) -> ParameterGroups:
        rates = [masking.rate for masking in rated(net).values()]
        mine = {id(rate) for rate in rates}
        rest = [p for p in net.parameters() if p.requires_grad and id(p) not in mine]
        default = self.schedule(optimisation.steps).rate_lr
        scale = default if self.rate_lr is None else self.rate_lr
        learned = {"lr": optimisation.lr * scale, "weight_decay": self.rate_weight_decay}
        return [{"params": rest}, {"params": rates, **learned}]

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        if self.fixed or state["budget_annealed"]:
            return robust
        layers = rated(net)
        gamma = state["gamma"].to(robust.value.device)
        over = overrun(layers, self.target, cost_of(layers, state))
        return Loss(robust.value + gamma * over, robust.correct)

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        if self.fixed:
            refresh(net)
            return
        layers = rated(net)
        cost = cost_of(layers, state)
        if state["budget_annealed"]:
            budget = self.schedule(progress.steps).budget(progress.fraction)
            project(layers, budget, cost, only_down=True)
        elif progress.step % progress.epoch_steps == 0 and not state["frozen"]:
            if round(float(overrun(layers, self.target, cost)), 4) == 0.0:
                state["frozen"].fill_(True)
            else:
                state["gamma"] += state["growth"]
        follow(layers)

    @torch.no_grad()
    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        """Project the rates onto the target and select the last masks.

        Raises:
            Refused: the search ended so far above the target that the projection would decide.
        """
        if self.fixed and self.granularity != "channel":
            return current_masks(net)
        layers = rated(net)
        over = 0.0 if self.fixed else float(overrun(layers, self.target, cost_of(layers, state)))
        if 1.0 + over > OVERSHOOT:
            raise Refused(
                f"harp: the search ended at {1.0 + over:.2f} times the target density "
                f"{self.target:g}; train longer (--set prune.epochs=N) or raise --gamma"
            )
        if self.granularity == "channel":
            return self._land_channels(net, state, task)
        land(layers, self.sparsity)
        return current_masks(net)

    def _land_channels(self, net: nn.Module, state: State, task: Task) -> Masks:
        """Round the widths within the budget; the network is plain afterwards."""
        masks = learned(net)
        scores = {name: mask.scores.abs() for name, mask in masks.items()}
        wanted = {name: float(mask.keep) for name, mask in masks.items()}
        if layers := rated(net):
            project(layers, self.target, cost_of(layers, state))
            wanted = {n: float(m.density()) * m.mask.numel() for n, m in layers.items()}
        detach_channels(net)
        units = self.channel_units(net, task)
        return units.select(scores, units.fit(wanted, self.sparsity))
