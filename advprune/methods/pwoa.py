"""PwoA: pruning a robust network without adversarial examples (Jian et al. 2022).

The robust network as it is at the start, frozen, is the teacher of all that follows, on clean
images (`distillation.divergence`, at temperature 30):

    pull    SGD on KD + sum over layers of rho/2 |W - Z + U|^2      a third of the run, see `admm`
    cut     the largest of each layer stay, once
    tune    SGD on KD + sum over hidden activations z of            the rest, see `hsic`
                lambda_x nHSIC(images, z) - lambda_y nHSIC(labels, z)

with what was cut held at zero. Each phase has a descent of the learning rate of its own, the second
from half the first's. Nothing is attacked but to measure.

The teacher is in the state of the search, under the names of its tensors.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from advprune import admm, hsic, taps
from advprune.batches import Batch
from advprune.card import Card
from advprune.distillation import TEMPERATURE, divergence
from advprune.epochs import part
from advprune.events import Event
from advprune.frozen import same_modes
from advprune.masking import prunable_weights
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.objectives import Loss, correct
from advprune.precision import answer
from advprune.structured import StructuredMethod
from advprune.types import Images, Logits, Masks

# rho * lr * steps of the released CIFAR-10 run before the cut: 0.01 * 0.01 * 50 epochs of 391.
PULL = 1.955
GROWTH = 1.35  # of rho at each update


@register
class PwoA(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="PwoA",
        paper="Jian et al., Pruning Adversarially Robust Neural Networks without Adversarial "
        "Examples, ICDM 2022",
        year=2022,
        entry="PwoA",
        summary="pulls, cuts and tunes a robust network by what it says of clean images alone",
        equations=(
            "KD = T^2 KL(p_teacher(x) || p(x)) at T = 30, the teacher being the network before",
            "pull: SGD on KD + sum over layers of rho/2 |W - Z + U|^2; now and then rho <- 1.35 "
            "rho, Z <- Proj(W + U), U <- U + W - Z",
            "cut, once, a third into the run: of each layer the units of largest L2 norm stay, in "
            "the paper the same share of all",
            "tune: SGD on KD + sum over z of 2e-5 nHSIC(x, z) - 1e-4 nHSIC(y, z), what was cut "
            "held at zero",
            "nHSIC = trace(K(K + eNI)^-1 L(L + eNI)^-1), e = 1e-5, of centred kernels: Gaussian "
            "with sigma = 5 for each dimension, linear on labels",
        ),
        departures=(
            "rho follows the length of the run: rho lr steps is as released; it is not held at 1, "
            "which only the last update passes",
            "Z stays from update to update, as in the paper; as released it is Proj(W) again at "
            "the start of each epoch",
            "one cosine for each phase; as released the rate of the pull falls tenfold from epoch "
            "to epoch and returns at each update",
            "the weight 10 of KD over a mean of images and classes is the sum over ten classes, "
            "however many there are",
            "z is what each layer reads, each tensor once; as released the outputs of residual "
            "blocks and what the last layer reads",
            "linear layers are pruned like convolutions; as released they stay dense",
            "filters and channels that can only go together, across an addition, go together",
        ),
        pretraining="TRADES",
        finetuning="KD",
        structure="US+S",
        locality="L",
        criterion="SOLWM",
    )
    moves_weights: ClassVar[bool] = True
    allocation: Literal["uniform", "erk", "lamp"] = Field(
        default="uniform", description="layer densities, fixed before the search"
    )
    prune_at: float = Field(
        default=1 / 3, ge=0, le=1, description="share of the run before the cut"
    )
    rho: float | None = Field(
        default=None, gt=0, description="weight of the pull at first; 0.01 at the paper's length"
    )
    updates: int = Field(
        default=16, ge=1, description="updates of Z and U before the cut, evenly spaced"
    )
    lambda_x: float = Field(
        default=2e-5, ge=0, description="how much activations are to forget the images"
    )
    lambda_y: float = Field(
        default=1e-4, ge=0, description="how much activations are to keep the labels"
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        units, weights = self.units(net, task), prunable_weights(net)
        kept = units.counts(self.allocation, units.norms(weights), self.sparsity)
        steps = max(1, self._cut_at(optimisation.steps))
        rho = PULL / (optimisation.lr * steps) if self.rho is None else self.rho
        return {
            **admm.begin(units, weights, kept, rho),
            **{f"teacher/{name}": value.clone() for name, value in net.state_dict().items()},
            **{f"mask/{n}": torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()},
            "pruned": torch.tensor(False),
        }

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        taught = teach(net, part(state, "teacher/"), batch.images, task)
        with taps.read(net) as read:
            logits = task.objective.logits(net, batch.images)
        value = divergence(logits, taught, TEMPERATURE)
        if not state["pruned"]:
            value = value + admm.penalty(net, state)
        elif self.lambda_x or self.lambda_y:
            classes, weights = logits.shape[1], (self.lambda_x, self.lambda_y)
            value = value + hsic.bottleneck(read[1:], batch.images, batch.labels, classes, *weights)
        return Loss(value, correct(logits, batch.labels))

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        if state["pruned"]:
            _hold(net, state)
            return None
        cut_at = self._cut_at(progress.steps)
        if progress.step >= cut_at:
            self._cut(net, state, task)
            return Event.PRUNE | Event.RESET
        if admm.due(state, progress.step, cut_at, self.updates):
            admm.update(self.units(net, task), prunable_weights(net), state, GROWTH)
        return None

    def pace(self, fraction: float) -> float:
        if fraction < self.prune_at:
            return fraction / self.prune_at
        return 0.5 + 0.5 * (fraction - self.prune_at) / (1.0 - self.prune_at)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        if not state["pruned"]:  # where there was no step at all
            self._cut(net, state, task)
        return {name: mask.cpu().clone() for name, mask in part(state, "mask/").items()}

    def _cut_at(self, steps: int) -> int:
        """How many steps pull, by the middle of each, as the learning rate counts them."""
        return math.floor(self.prune_at * steps + 0.5)

    def _cut(self, net: nn.Module, state: State, task: Task) -> None:
        state["pruned"].fill_(True)
        masks = admm.select(self.units(net, task), prunable_weights(net), state)
        for name, mask in masks.items():
            state[f"mask/{name}"].copy_(mask)
        _hold(net, state)


def _hold(net: nn.Module, state: State) -> None:
    """Put what was cut back to zero: as if its gradient had been masked."""
    for name, weight in prunable_weights(net).items():
        weight.mul_(state[f"mask/{name}"])


def teach(net: nn.Module, teacher: dict[str, Tensor], images: Images, task: Task) -> Logits:
    """What the network answered when its tensors were these."""
    with torch.no_grad(), same_modes(net):
        net.eval()
        return answer(
            lambda x: functional_call(net, teacher, (x,)), images, task.objective.precision
        )
