"""R-ADMM: robust training that pulls the weights onto a sparse set, then cuts (Ye et al. 2019).

Minimise the adversarial loss over W with W in the set of sparse weights, by ADMM:

    W  <- descend  L_robust(W) + sum_l rho / 2 |W_l - Z_l + U_l|^2      every step
    Z  <- Proj(W + U)                                                    now and then
    U  <- U + W - Z

from Z = Proj(W), U = 0, with rho growing by 1.3 before each such update. Proj keeps, in each layer,
the groups of weights of largest L2 norm. At the end the same rule cuts W itself; what follows is
the robust fine-tuning with the mask held.

U is a constant of the descent. In the released code it is not: after m updates it carries m copies
of W, which multiplies the gradient of the penalty by m + 1 (`dual=released` reproduces that).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.batches import Batch
from advprune.card import Card
from advprune.errors import Refused
from advprune.granularity import Granularity, exempt, group_norm
from advprune.masking import prunable_weights
from advprune.masks import keep_best, keep_top
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.models import logits_layer, prunable
from advprune.objectives import Loss
from advprune.types import Masks

# rho * lr * steps of the released CIFAR-10 run: 0.001 * 0.01 * 200 epochs of 391 steps.
PULL = 0.782


@register
class Radmm(PruningMethod):
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
            "counts are exact: the released percentile neither cuts nor trains weights that equal "
            "it",
        ),
        structure="US+S",
        locality="L",
        criterion="SOLWM",
    )
    moves_weights: ClassVar[bool] = True
    granularity: Granularity = Field(default="weight", description="what is removed as one")
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

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        if self.granularity != "weight" and self.allocation != "uniform":
            raise Refused(
                f"radmm: allocation {self.allocation!r} counts weights, granularity "
                f"{self.granularity!r} counts groups; use allocation uniform"
            )
        kept = self._counts(net)
        default = PULL / (optimisation.lr * max(1, optimisation.steps))
        state = {
            "rho": torch.tensor(default if self.rho is None else self.rho),
            "updates": torch.tensor(0),
        }
        for name, weight in prunable_weights(net).items():
            state[f"kept/{name}"] = torch.tensor(kept[name])
            state[f"Z/{name}"] = self._project(weight, kept[name])
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
    def update(self, net: nn.Module, state: State, progress: Progress) -> None:
        # An update is due where the share of the run that is done passes k / (updates + 1).
        due = min(self.updates, progress.step * (self.updates + 1) // progress.steps)
        if due <= int(state["updates"]):
            return
        state["updates"] += 1
        state["rho"] *= self.rho_growth
        for name, weight in prunable_weights(net).items():
            z, u = state[f"Z/{name}"], state[f"U/{name}"]
            z.copy_(self._project(weight + u, int(state[f"kept/{name}"])))
            u.add_(weight - z)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        norms = {name: group_norm(w, self.granularity) for name, w in prunable_weights(net).items()}
        return keep_best(norms, {name: int(state[f"kept/{name}"]) for name in norms})

    def _counts(self, net: nn.Module) -> dict[str, int]:
        dense = exempt(net, self.granularity)
        if self.head == "dense":
            dense |= {logits_layer(net)}
        # Of single weights the norms are magnitudes, which is all that ERK and LAMP look at.
        norms = {name: group_norm(w, self.granularity) for name, w in prunable_weights(net).items()}
        return allocate(self.allocation, norms, self.sparsity, dense=dense)

    def _project(self, weight: Tensor, kept: int) -> Tensor:
        return weight * keep_top(group_norm(weight, self.granularity), kept)
