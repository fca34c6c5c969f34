"""The fast gradient sign method: one full step from the image itself."""

from advprune.attacks import Card
from advprune.attacks.losses import Loss, cross_entropy
from advprune.attacks.pgd import pgd
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat

CARD = Card(paper="Goodfellow et al. 2015", needs="gradient")


def fgsm(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    loss: Loss = cross_entropy,
) -> Images:
    """x + eps * steepest(gradient of the loss), cut to the box (Goodfellow et al., section 4)."""
    return pgd(model, x, y, threat, rng, steps=1, step_size=threat.eps, loss=loss, start="none")
