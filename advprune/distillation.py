"""A network that learns from a robust one: beside its labels, or from its answers alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.batches import Batch
from advprune.frozen import frozen
from advprune.objectives import Loss, Objective, correct, cross_entropy_attack
from advprune.types import Images, Logits

TEMPERATURE = 30.0  # of kd (Jian et al. 2022)


@dataclass(frozen=True)
class Distilled(Objective):
    """What a robust teacher says of the images as they are, in the loss.

        kd        T^2 KL(p_teacher(x) || p(x)), both at temperature T = 30
        others    (1 - share) CE(x_adv) + share KL(p_teacher(x) || p(x_adv))

    kd asks for no label and attacks nothing: a robust network hands its robustness on through what
    it answers to clean images (Jian et al. 2022). Released is 10 times a mean that is taken over
    the classes too, which with ten of them is the same.

    The others do adversarially robust distillation (Goldblum et al. 2020) at temperature 1, with
    the labels' term on adversarial images as well, so that one attack serves both. It takes the
    place of the objective's own loss; the attack is PGD on the student's cross-entropy.

    Args:
        teacher: a robust network, on the device of the student; it is left as it is.
        share: of the teacher, in [0, 1]; kd has no other part.
    """

    teacher: nn.Module | None = None
    share: float = 0.0

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        if self.name == "kd":
            logits = self.logits(net, batch.images)
            value = divergence(logits, self.taught(batch.images), TEMPERATURE)
            return Loss(value, correct(logits, batch.labels))
        adversarial = cross_entropy_attack(self, net, batch)
        taught = self.taught(batch.images)
        logits = self.logits(net, adversarial)
        by_label = F.cross_entropy(logits, batch.labels)
        value = (1.0 - self.share) * by_label + self.share * divergence(logits, taught)
        return Loss(value, correct(logits, batch.labels))

    @property
    def times(self) -> int:
        return 1  # one attack serves both terms, whatever the objective's own loss does

    def taught(self, images: Images) -> Logits:
        """What the teacher answers, in eval mode."""
        assert self.teacher is not None
        with frozen(self.teacher), torch.no_grad():
            return self.logits(self.teacher, images)


def taught_by(objective: Objective, teacher: nn.Module) -> Objective:
    """kd with its teacher; an objective that learns from none stays as it is."""
    if objective.name != "kd":
        return objective
    plain = (objective.name, objective.threat, objective.steps, objective.beta)
    return Distilled(*plain, objective.precision, teacher=teacher)


def divergence(logits: Logits, taught: Logits, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)), averaged over the images."""
    found, wanted = (F.log_softmax(each / temperature, dim=1) for each in (logits, taught))
    nats = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * nats
