"""RSR: adversarial training of noisy weights that a lasso makes sparse (Rakin et al. 2019).

Three regularisers at once, then one cut:

    noise   w + alpha sigma eta, with eta ~ N(0, 1) drawn anew for every weight in every forward,
            sigma the standard deviation of the layer's weights, a constant of the descent, and
            alpha learned for each output channel
    lasso   lambda sum |w|, over the weights without their noise
    attack  the loss of clean and of adversarial images, half and half

At the end the smallest weights go, of all layers together. Noise belongs to the loss: whoever asks
the network meanwhile, an attack or a measurement, asks the weights themselves, and those are what
is left in the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.batches import Batch
from advprune.card import Card
from advprune.masking import attach, maskings, prunable_weights
from advprune.method import Optimisation, PruningMethod, State, Task, register
from advprune.models import prunable
from advprune.objectives import Loss
from advprune.optimisation import ParameterGroups
from advprune.types import Masks

START = 0.25  # alpha of every channel
# How far the lasso alone takes a weight in the whole search: several times the spread of a layer's
# weights, so that what the loss does not hold ends near zero. Of 0, 0.01, 0.1 and 0.3 it left the
# most at 95 % without fine-tuning, on validation images of digits.
REACH = 0.3


class Noisy(nn.Module):
    """w + alpha sigma eta in training mode within `drawn`; w itself everywhere else."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((len(weight), *[1] * (weight.dim() - 1)), START))
        self.drawing = False

    def forward(self, weight: Tensor) -> Tensor:
        # An attack inside the loss sets eval mode: it finds the network that is left in the end.
        if not (self.drawing and self.training):
            return weight
        spread = weight.detach().std(correction=0)
        return weight + self.alpha * spread * torch.randn_like(weight)


@contextmanager
def drawn(net: nn.Module) -> Iterator[None]:
    """Every forward in training mode draws noise for itself, from the generator of its layers."""
    noisy = [masking for _, _, masking in maskings(net) if isinstance(masking, Noisy)]
    for masking in noisy:
        masking.drawing = True
    try:
        yield
    finally:
        for masking in noisy:
            masking.drawing = False


@register
class Rsr(PruningMethod):
    card: ClassVar[Card] = Card(
        title="RSR",
        paper="Rakin et al., Robust Sparse Regularization, arXiv 1905.13074, 2019",
        year=2019,
        entry="RSR",
        summary="adversarial training of noisy weights under a lasso, then cut by magnitude",
        equations=(
            "noise: w + alpha sigma eta, eta ~ N(0, 1) for each weight and forward, sigma the "
            "standard deviation of the layer's weights, alpha learned for each output channel "
            "from 0.25, without decay",
            "loss: CE(x) / 2 + L_robust(x_adv) / 2 + lambda sum of |w|",
            "lambda: alone it would take a weight 0.3 far in the whole search",
            "at the end: the smallest |w| of all layers together go, and the noise with them",
        ),
        departures=(
            "noise and halves are those of the authors' Parametric Noise Injection (CVPR 2019), "
            "whose code is public; of this paper only abstract and introduction could be read, so "
            "lambda and how it follows the length of the search are chosen here",
            "no noise outside of the loss: a network that draws at every answer cannot be shipped "
            "or verified; attacks in training, validation and at the end ask the weights "
            "themselves, where the authors leave the noise on for all of them",
            "the cut lands at the asked sparsity, where the paper's threshold leads where it leads",
            "the attack is the recipe's, on true labels from the first epoch; the released one "
            "takes the network's answers as labels and starts after five epochs",
            "one learning-rate schedule, without Nesterov's momentum",
        ),
        pretraining="AT",
        finetuning="none",
        criterion="RELWM",
    )
    moves_weights: ClassVar[bool] = True
    lasso: float | None = Field(
        default=None,
        ge=0,
        description="lambda: weight of the sum of |w|; by the length of the search if not given",
    )
    clean: float = Field(
        default=0.5, ge=0, le=1, description="share of the loss that is of clean images"
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        self._select(net, task)  # refuses a budget that cannot be met now, not at the end
        attach(net, lambda _, weight: Noisy(weight))
        default = _reaching(optimisation)
        return {"lasso": torch.tensor(default if self.lasso is None else self.lasso)}

    def groups(self, net: nn.Module, optimisation: Optimisation) -> ParameterGroups:
        alphas = [masking.alpha for _, _, masking in maskings(net) if isinstance(masking, Noisy)]
        apart = {id(alpha) for alpha in alphas}
        others = [p for p in net.parameters() if p.requires_grad and id(p) not in apart]
        return [{"params": others}, {"params": alphas, "weight_decay": 0.0}]

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        with drawn(net):
            robust = task.objective(net, batch)
            logits = task.objective.logits(net, batch.images)
        natural = F.cross_entropy(logits, batch.labels)
        value = self.clean * natural + (1.0 - self.clean) * robust.value
        return Loss(value + float(state["lasso"]) * _length(net), robust.correct)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        for _, layer, _ in list(maskings(net)):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return self._select(net, task)

    def _select(self, net: nn.Module, task: Task) -> Masks:
        """The masks of the largest weights as they stand."""
        units = self.units(net, task)
        norms = units.norms(prunable_weights(net))
        return units.select(norms, units.counts("global", norms, self.sparsity))


def _reaching(optimisation: Optimisation) -> float:
    """lambda that takes a weight `REACH` far: rates are half their peak, momentum repeats steps."""
    repeated = 0.5 * optimisation.steps / (1.0 - optimisation.momentum)
    return REACH / (optimisation.lr * max(1.0, repeated))


def _length(net: nn.Module) -> Tensor:
    """sum |w| over all prunable layers."""
    return torch.stack([layer.weight.abs().sum() for layer in prunable(net).values()]).sum()  # pyright: ignore
