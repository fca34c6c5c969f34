"""What training minimises: natural, PGD-AT, TRADES or MART, as one call on a batch.

The attack inside runs on the frozen network: gradients with respect to inputs only, batch norm in
eval mode, masked weights materialised once. Random starts belong to images, not to batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.attacks.pgd import pgd
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Images, Labels, Logits, Threat

ObjectiveName = Literal["natural", "pgd", "trades", "mart"]


@dataclass(frozen=True)
class Batch:
    """Images float32 (N, C, H, W), labels (N,), and one random stream per image."""

    images: Images
    labels: Labels
    random: ImageRandom


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and how many images of the batch were right as trained upon."""

    value: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Objective:
    """A training objective under a threat model.

    Args:
        name: natural; pgd (Madry et al. 2018); trades (Zhang et al. 2019); mart (Wang et al. 2020).
        threat: the ball of the attack inside.
        steps: iterations of that attack; each moves by 2.5 eps / steps, the papers' eps / 4 at 10.
        beta: weight of the robust term of TRADES (6 in the paper) and MART (5 in its code).
    """

    name: ObjectiveName
    threat: Threat
    steps: int = 10
    beta: float = 6.0

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        if self.name not in OBJECTIVES:
            raise Refused(
                f"objective: {self.name!r} is not known; use one of {', '.join(OBJECTIVES)}"
            )
        return OBJECTIVES[self.name](self, net, batch)


def natural(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy on the images as they are."""
    logits = net(batch.images)
    return Loss(F.cross_entropy(logits, batch.labels), _correct(logits, batch.labels))


def pgd_at(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy on adversarial images (Madry et al. 2018, equation 2.1)."""
    logits = net(_cross_entropy_attack(objective, net, batch))
    return Loss(F.cross_entropy(logits, batch.labels), _correct(logits, batch.labels))


def trades(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """CE(x) + beta KL(p(x) || p(x_adv)), x_adv maximising that KL (Zhang et al. 2019, eq. 5)."""
    with frozen(net):
        with torch.no_grad():
            clean = F.softmax(net(batch.images), dim=1)

        def divergence(logits: Logits, _: Labels) -> Tensor:
            return F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="none").sum(dim=1)

        adversarial = pgd(
            net,
            batch.images,
            batch.labels,
            objective.threat,
            batch.random,
            steps=objective.steps,
            loss=divergence,
            start="gaussian",
        )
    clean_logits = net(batch.images)
    adversarial_logits = net(adversarial)
    # Of logarithms: where a clean probability underflows to zero, its own gradient would be NaN.
    robust = F.kl_div(
        F.log_softmax(adversarial_logits, dim=1),
        F.log_softmax(clean_logits, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    value = F.cross_entropy(clean_logits, batch.labels) + objective.beta * robust
    return Loss(value, _correct(adversarial_logits, batch.labels))


def mart(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Boosted CE(x_adv) + beta (1 - p_y(x)) KL(p(x) || p(x_adv)) (Wang et al. 2020, eq. 12)."""
    adversarial = _cross_entropy_attack(objective, net, batch)
    labels = batch.labels[:, None]
    clean = F.softmax(net(batch.images), dim=1)
    adversarial_logits = net(adversarial)
    log_adversarial = F.log_softmax(adversarial_logits, dim=1)
    adversarial_probs = log_adversarial.exp()
    wrong = adversarial_probs.scatter(1, labels, 0.0).amax(dim=1)
    # The constants keep both logarithms finite where a probability reaches one or zero.
    boosted = -log_adversarial.gather(1, labels)[:, 0] - torch.log(1.0001 - wrong)
    divergence = F.kl_div(log_adversarial, clean.clamp_min(1e-12), reduction="none").sum(dim=1)
    hesitation = 1.0 - clean.gather(1, labels)[:, 0]
    value = boosted.mean() + objective.beta * (divergence * hesitation).mean()
    return Loss(value, _correct(adversarial_logits, batch.labels))


OBJECTIVES: dict[str, Callable[[Objective, nn.Module, Batch], Loss]] = {
    "natural": natural,
    "pgd": pgd_at,
    "trades": trades,
    "mart": mart,
}


def _cross_entropy_attack(objective: Objective, net: nn.Module, batch: Batch) -> Images:
    with frozen(net):
        return pgd(
            net,
            batch.images,
            batch.labels,
            objective.threat,
            batch.random,
            steps=objective.steps,
        )


def _correct(logits: Logits, labels: Labels) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).sum()
