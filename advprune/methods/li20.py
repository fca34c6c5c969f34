"""Boosting tickets: found by a cheap adversarial training, and rewound (Li et al. 2020).

A short training under FGSM, at a low rate, tells which weights matter. They are ranked by their
size in units of their layer's mean, of all layers together, so that layers of small weights are not
emptied. Then everything goes back to theta_0, and the fine-tuning trains the ticket under the full
attack: it is said to get there in half the time.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from advprune.attacks.fgsm import fgsm
from advprune.batches import Batch
from advprune.card import Card
from advprune.masking import hold, prunable_weights
from advprune.method import Optimisation, PruningMethod, State, Task, register
from advprune.objectives import Loss, correct
from advprune.tickets import remember, rewind
from advprune.types import Masks


@register
class Li20(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Boosting tickets",
        paper="Li et al., Towards Practical Lottery Ticket Hypothesis for Adversarial Training, "
        "2020",
        year=2020,
        entry="Li20",
        summary="finds a ticket by a short training under FGSM, and rewinds it",
        equations=(
            "theta_0 is remembered; theta: SGD at a low rate on CE(x + eps sign dCE/dx)",
            "score = |theta| / mean |theta_l|, l its layer; the lowest of all layers go, once",
            "weights, biases and batch norm go back to theta_0; the fine-tuning trains from there",
        ),
        departures=(
            "every layer keeps at least one weight",
            "a channel without inputs is still shifted by its batch norm, a constant that learns; "
            "the released code silences it",
            "one cosine schedule with a warm-up in each training",
        ),
        pipeline="before",
        pretraining="FGSM",
        criterion="LWM",
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        self._select(net, task)  # refuses a budget that cannot be met before the run, not after
        return remember(net)

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        objective = task.objective
        with objective.asked(net, batch.images) as model:
            attacked = fgsm(model, batch.images, batch.labels, objective.threat, batch.random)
        logits = objective.logits(net, attacked)
        return Loss(F.cross_entropy(logits, batch.labels), correct(logits, batch.labels))

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        masks = self._select(net, task)
        rewind(net, state)
        hold(net, masks)
        return masks

    def _select(self, net: nn.Module, task: Task) -> Masks:
        units = self.units(net, task)
        scores = {name: in_means(weight) for name, weight in prunable_weights(net).items()}
        return units.select(scores, units.counts("global", scores, self.sparsity))


def in_means(weight: Tensor) -> Tensor:
    """The sizes of a layer's weights in units of their mean."""
    sizes = weight.abs()
    mean = sizes.double().mean().clamp_min(1e-12)
    return sizes / mean.to(sizes.dtype)
