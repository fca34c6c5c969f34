"""R-ADMM: robust training that pulls the weights onto a sparse set, then cuts (Ye et al. 2019).

Minimise the adversarial loss over W with W in the set of sparse weights, by ADMM (see `admm`), with
rho growing by 1.3 before each update. What follows is the robust fine-tuning with the mask held.

U is a constant of the descent. In the released code it is not: after m updates it carries m copies
of W, which multiplies the gradient of the penalty by m + 1 (`dual=released` reproduces that).
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from advprune import admm
from advprune.batches import Batch
from advprune.card import Card
from advprune.masking import prunable_weights
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.models import logits_layer
from advprune.objectives import Loss
from advprune.structured import AS_ONE, StructuredMethod
from advprune.types import Masks
from advprune.units import Columns, Units


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
        default = admm.PULL / (optimisation.lr * max(1, optimisation.steps))
        return admm.begin(units, weights, kept, default if self.rho is None else self.rho)

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        return Loss(robust.value + self.penalty(net, state), robust.correct)

    def penalty(self, net: nn.Module, state: State) -> Tensor:
        copies = float(state["updates"]) + 1.0 if self.dual == "released" else 1.0
        return admm.penalty(net, state, copies)

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        if admm.due(state, progress.step, progress.steps, self.updates):
            admm.update(self.units(net, task), prunable_weights(net), state, self.rho_growth)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return admm.select(self.units(net, task), prunable_weights(net), state)
