"""R-ADMM: robust training that pulls the weights onto a sparse set, then cuts (Ye et al. 2019).

Minimise the adversarial loss over W with W in the set of sparse weights, by ADMM:

    W  <- descend  L_robust(W) + sum_l rho / 2 |W_l - Z_l + U_l|^2      every step
    Z  <- Proj(W + U)                                                    now and then
    U  <- U + W - Z

from Z = Proj(W), U = 0, with rho growing by 1.3 before each such update. Proj keeps, in each layer
or group of channels, the units of largest L2 norm. At the end the same rule cuts W itself; what
follows is the robust fine-tuning with the mask held.

U is a constant of the descent. In the released code it is not: after m updates it carries m copies
of W, which multiplies the gradient of the penalty by m + 1 (`dual=released` reproduces that).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.batches import Batch
from advprune.card import Card
from advprune.masking import prunable_weights
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.models import logits_layer, prunable
from advprune.objectives import Loss
from advprune.structured import AS_ONE, StructuredMethod
from advprune.types import Masks
from advprune.units import Columns, Units

# rho * lr * steps of the released CIFAR-10 run: 0.001 * 0.01 * 200 epochs of 391 steps.
PULL = 0.782


@register
class Radmm(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="R-ADMM",
        paper="Ye et al., Adversarial Robustness vs. Model Compression, or Both?, ICCV 2019",
        year=2019,
        entry="RADMM",
        summary="robust training pulled onto the sparse set by ADMM, then cut by magnitude",
        equations=(
            "W: SGD on L_robust + sum over layers of rho/2 |W - Z + U|^2, W dense",
            "now and then: rho <- 1.3 rho, Z <- Proj(W + U), U <- U + W - Z",
            "Proj keeps the groups of largest L2 norm in each layer; at the end it cuts W",
        ),
        departures=(
            "U is detached (dual=released: the penalty's gradient times m + 1 after m updates)",
            "rho follows the length of the run: rho lr steps is as released",
            "one learning-rate schedule over the whole search, without restarts; the attack runs "
            "in eval mode, so it does not move batch norm statistics",
            "filters and channels that can only go together, across an addition, go together",
            "counts are exact: the released percentile neither cuts nor trains weights that equal "
            "it",
        ),
        structure="US+S",
        locality="L",
        criterion="SOLWM",
    )
    moves_weights: ClassVar[bool] = True
    granularity: Literal["weight", "column", "filter", "channel", "2:4"] = Field(  # pyright: ignore
        default="weight", description=AS_ONE
    )
    allocation: Literal["uniform", "erk", "lamp"] = Field(
        default="uniform", description="layer densities, fixed before the search"
    )
    head: Literal["pruned", "dense"] = Field(
        default="pruned", description="whether the logits layer is pruned; the paper's stays dense"
    )
    rho: float | None = Field(
        default=None, gt=0, description="weight of the penalty; 0.001 at the paper's length"
    )
    rho_growth: float = Field(default=1.3, ge=1, description="factor of rho at each update")
    updates: int = Field(
        default=9, ge=1, description="updates of Z and U, evenly spaced; 9 in the released run"
    )
    dual: Literal["detached", "released"] = Field(
        default="detached", description="U as a constant, or with the released code's gradient"
    )

    def units(self, net: nn.Module, task: Task) -> Units:
        return Columns(net) if self.granularity == "column" else super().units(net, task)

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        units = self.units(net, task)
        weights = prunable_weights(net)
        dense = {logits_layer(net)} if self.head == "dense" else set[str]()
        # Of single weights the norms are magnitudes, which is all that ERK and LAMP look at.
        kept = units.counts(self.allocation, units.norms(weights), self.sparsity, dense=dense)
        default = PULL / (optimisation.lr * max(1, optimisation.steps))
        state = {
            "rho": torch.tensor(default if self.rho is None else self.rho),
            "updates": torch.tensor(0),
            **{f"kept/{name}": torch.tensor(count) for name, count in kept.items()},
        }
        projected = self._project(units, weights, state)
        for name, weight in weights.items():
            state[f"Z/{name}"] = projected[name]
            state[f"U/{name}"] = torch.zeros_like(weight)
        return state

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        return Loss(robust.value + self.penalty(net, state), robust.correct)

    def penalty(self, net: nn.Module, state: State) -> Tensor:
        """sum_l rho / 2 |W_l - Z_l + U_l|^2."""
        distances = [
            (layer.weight - state[f"Z/{name}"] + state[f"U/{name}"]).square().sum()
            for name, layer in prunable(net).items()
        ]
        copies = float(state["updates"]) + 1.0 if self.dual == "released" else 1.0
        return 0.5 * float(state["rho"]) * copies * torch.stack(distances).sum()

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        # An update is due where the share of the run that is done passes k / (updates + 1).
        due = min(self.updates, progress.step * (self.updates + 1) // progress.steps)
        if due <= int(state["updates"]):
            return
        state["updates"] += 1
        state["rho"] *= self.rho_growth
        weights = prunable_weights(net)
        moved = {name: weight + state[f"U/{name}"] for name, weight in weights.items()}
        projected = self._project(self.units(net, task), moved, state)
        for name, weight in weights.items():
            state[f"Z/{name}"].copy_(projected[name])
            state[f"U/{name}"].add_(weight - projected[name])

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return self._masks(self.units(net, task), prunable_weights(net), state)

    def _masks(self, units: Units, weights: dict[str, Tensor], state: State) -> Masks:
        counts = {name: int(state[f"kept/{name}"]) for name in units.sizes}
        return units.select(units.norms(weights), counts)

    def _project(self, units: Units, weights: dict[str, Tensor], state: State) -> dict[str, Tensor]:
        masks = self._masks(units, weights, state)
        return {name: weight * masks[name].to(weight.device) for name, weight in weights.items()}
