"""What training minimises: natural, PGD-AT, TRADES, MART, MAD's, fast ones; a call on a batch.

The attack inside asks a view of the network in eval mode, see `attack_view`: gradients with respect
to inputs only. Random starts belong to images, not to batches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.attack_view import AttackView, as_it_is
from advprune.attacks.losses import cross_entropy
from advprune.attacks.pgd import Start, ascent, pgd, uniform_offsets
from advprune.batches import Batch
from advprune.errors import Refused
from advprune.precision import Precision, answer
from advprune.replays import moving
from advprune.spans import span
from advprune.types import Classifier, Images, Labels, Logits, Threat

Untaught = Literal["natural", "pgd", "trades", "mart", "mad", "fgsm-rs", "n-fgsm", "free"]
ObjectiveName = Literal[Untaught, "kd"]  # which learns from a teacher, see `distillation`
SINGLE_STEP = ("fgsm-rs", "n-fgsm")  # they may overfit from one epoch to the next, see `watchdog`

# Weight of the robust term in the papers' code, for the objectives that have one.
BETAS = {"trades": 6.0, "mart": 5.0, "mad": 0.5}
FAST_REACH = 1.25  # eps; of a single step from a random start (Wong et al. 2020)
MAD_REACH = 2.3  # eps / steps; of the attack in MAD's scores and in its fine-tuning


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and how many images of the batch were right as trained upon."""

    value: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Objective:
    """A training objective under a threat model.

    Args:
        name: natural; pgd (Madry et al. 2018); trades (Zhang et al. 2019); mart (Wang et al.
            2020); mad, the fine-tuning of Lee et al. (2022); and, with an attack of one step,
            fgsm-rs (Wong et al. 2020) and n-fgsm (de Jorge et al. 2022); free (Shafahi et al.
            2019), see `replays`; kd is `Distilled`.
        threat: the ball of the attack inside.
        steps: iterations of that attack; each moves by 2.5 eps / steps, the papers' eps / 4 at 10,
            and by 1.25 eps at most. Single-step objectives and free are only measured with so many.
        beta: weight of the robust term, `BETAS` if not given.
        precision: of the layers, in training and in the attack.
        replays: how often free takes a batch; the paper's 4 for ImageNet, 8 for CIFAR-10.
        view: what the attack asks; a training has one from its first step to its last.
    """

    name: ObjectiveName
    threat: Threat
    steps: int = 10
    beta: float | None = None
    precision: Precision = "fp32"
    replays: int = 4
    view: AttackView | None = field(default=None, compare=False, repr=False)

    @property
    def robust_weight(self) -> float | None:
        """The weight of the robust term; None for objectives without one."""
        default = BETAS.get(self.name)
        return default if default is None or self.beta is None else self.beta

    @property
    def single_step(self) -> bool:
        return self.name in SINGLE_STEP

    @property
    def times(self) -> int:
        """How often in succession training takes a batch, each time with a step."""
        return self.replays if self.name == "free" else 1

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        if self.name not in OBJECTIVES:
            raise Refused(
                f"objective: {self.name!r} is not known; use one of {', '.join(OBJECTIVES)}"
            )
        return OBJECTIVES[self.name](self, net, batch)

    def for_training(self, net: nn.Module, images: Images, shown: int) -> Self:
        """The same with a view of its own of this network, as it is before it learns.

        Args:
            images: a few of those that it will see.
            shown: how many it will see in all.
        """
        view = AttackView(self.precision, shown * self.steps)
        view.prepare(net, images)
        return replace(self, view=view)

    def logits(self, net: nn.Module, images: Images) -> Logits:
        """What the network in training mode answers, float32 with gradients."""
        return answer(net, images, self.precision)

    @contextmanager
    def asked(self, net: nn.Module, images: Images) -> Iterator[Classifier]:
        """The network as the attack on these images asks it; it must not change meanwhile."""
        view = self.view.of(net, images) if self.view else as_it_is(net, self.precision)
        with span("attack"), view as model:
            yield model


def natural(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy on the images as they are."""
    logits = objective.logits(net, batch.images)
    return Loss(F.cross_entropy(logits, batch.labels), correct(logits, batch.labels))


def pgd_at(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy on adversarial images (Madry et al. 2018, equation 2.1)."""
    logits = objective.logits(net, cross_entropy_attack(objective, net, batch))
    return Loss(F.cross_entropy(logits, batch.labels), correct(logits, batch.labels))


def fgsm_rs(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy after one step of 1.25 eps from a random start (Wong et al. 2020)."""
    return pgd_at(replace(objective, steps=1), net, batch)


def n_fgsm(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy after noise of twice the radius and one step of eps (de Jorge et al. 2022).

    Nothing is projected onto the ball, only onto the box: images may lie three radii away.
    """
    x, threat = batch.images, objective.threat
    noise = 2.0 * uniform_offsets(threat, batch.random, x.shape[1:])
    noisy = (x + noise).clamp(threat.low, threat.high)
    with objective.asked(net, x) as model:
        gradient, _ = ascent(model, noisy, batch.labels, cross_entropy)
    moved = noisy + threat.eps * threat.steepest(gradient)
    logits = objective.logits(net, moved.clamp(threat.low, threat.high))
    return Loss(F.cross_entropy(logits, batch.labels), correct(logits, batch.labels))


def free(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy where the replays before have moved the images (Shafahi et al. 2019)."""
    logits = objective.logits(net, moving(batch, objective.threat))
    return Loss(F.cross_entropy(logits, batch.labels), correct(logits, batch.labels))


def trades(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """CE(x) + beta KL(p(x) || p(x_adv)), x_adv maximising that KL (Zhang et al. 2019, eq. 5)."""
    with objective.asked(net, batch.images) as model:
        with torch.no_grad():
            clean = F.softmax(model(batch.images), dim=1)

        def divergence(logits: Logits, _: Labels) -> Tensor:
            return F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="none").sum(dim=1)

        adversarial = pgd(
            model,
            batch.images,
            batch.labels,
            objective.threat,
            batch.random,
            steps=objective.steps,
            step_size=_step_size(objective, 2.5),
            loss=divergence,
            start="gaussian",
        )
    clean_logits = objective.logits(net, batch.images)
    adversarial_logits = objective.logits(net, adversarial)
    # Of logarithms: where a clean probability underflows to zero, its own gradient would be NaN.
    robust = F.kl_div(
        F.log_softmax(adversarial_logits, dim=1),
        F.log_softmax(clean_logits, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    value = F.cross_entropy(clean_logits, batch.labels) + _weight(objective) * robust
    return Loss(value, correct(adversarial_logits, batch.labels))


def mart(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """Boosted CE(x_adv) + beta (1 - p_y(x)) KL(p(x) || p(x_adv)) (Wang et al. 2020, eq. 12)."""
    return _misclassification_aware(objective, net, batch, reach=2.5)


def mad(objective: Objective, net: nn.Module, batch: Batch) -> Loss:
    """MART's loss as the authors of MAD fine-tune with it: beta 0.5, steps of 2.3 eps / steps."""
    return _misclassification_aware(objective, net, batch, reach=MAD_REACH)


def _misclassification_aware(
    objective: Objective, net: nn.Module, batch: Batch, reach: float
) -> Loss:
    adversarial = cross_entropy_attack(objective, net, batch, "gaussian", reach)
    labels = batch.labels[:, None]
    clean = F.softmax(objective.logits(net, batch.images), dim=1)
    adversarial_logits = objective.logits(net, adversarial)
    log_adversarial = F.log_softmax(adversarial_logits, dim=1)
    adversarial_probs = log_adversarial.exp()
    wrong = adversarial_probs.scatter(1, labels, 0.0).amax(dim=1)
    # The constants keep both logarithms finite where a probability reaches one or zero.
    boosted = -log_adversarial.gather(1, labels)[:, 0] - torch.log(1.0001 - wrong)
    divergence = F.kl_div(log_adversarial, clean.clamp_min(1e-12), reduction="none").sum(dim=1)
    hesitation = 1.0 - clean.gather(1, labels)[:, 0]
    value = boosted.mean() + _weight(objective) * (divergence * hesitation).mean()
    return Loss(value, correct(adversarial_logits, batch.labels))


OBJECTIVES: dict[str, Callable[[Objective, nn.Module, Batch], Loss]] = {
    "natural": natural,
    "pgd": pgd_at,
    "trades": trades,
    "mart": mart,
    "mad": mad,
    "fgsm-rs": fgsm_rs,
    "n-fgsm": n_fgsm,
    "free": free,
}


def cross_entropy_attack(
    objective: Objective,
    net: nn.Module,
    batch: Batch,
    start: Start = "uniform",
    reach: float = 2.5,
) -> Images:
    """PGD on the cross-entropy; its steps together could move `reach` times the radius."""
    with objective.asked(net, batch.images) as model:
        return pgd(
            model,
            batch.images,
            batch.labels,
            objective.threat,
            batch.random,
            steps=objective.steps,
            step_size=_step_size(objective, reach),
            start=start,
        )


def _step_size(objective: Objective, reach: float) -> float:
    """A single step would leave the ball on the other side: it is that of FGSM from a start."""
    return min(reach / objective.steps, FAST_REACH) * objective.threat.eps


def _weight(objective: Objective) -> float:
    assert objective.robust_weight is not None
    return objective.robust_weight


def correct(logits: Logits, labels: Labels) -> Tensor:
    """How many images have the highest logit at their label."""
    return (logits.detach().argmax(dim=1) == labels).sum()
