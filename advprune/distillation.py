"""A network that learns from a robust one beside its labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from advprune.batches import Batch
from advprune.frozen import frozen
from advprune.objectives import Loss, Objective, correct, cross_entropy_attack


@dataclass(frozen=True)
class Distilled(Objective):
    """(1 - share) CE(x_adv) + share KL(p_teacher(x) || p(x_adv)).

    Adversarially robust distillation (Goldblum et al. 2020) at temperature 1, with the labels'
    term on adversarial images as well, so that one attack serves both. It takes the place of the
    objective's own loss; the attack is PGD on the student's cross-entropy.

    Args:
        teacher: a robust network, on the device of the student; it is left as it is.
        share: of the teacher, in [0, 1].
    """

    teacher: nn.Module | None = None
    share: float = 0.0

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        assert self.teacher is not None
        adversarial = cross_entropy_attack(self, net, batch)
        with frozen(self.teacher), torch.no_grad():
            taught = F.log_softmax(self.logits(self.teacher, batch.images), dim=1)
        logits = self.logits(net, adversarial)
        divergence = F.kl_div(
            F.log_softmax(logits, dim=1), taught, reduction="batchmean", log_target=True
        )
        by_label = F.cross_entropy(logits, batch.labels)
        value = (1.0 - self.share) * by_label + self.share * divergence
        return Loss(value, correct(logits, batch.labels))
