"""AutoAttack: four attacks in a row, the standard of robustness benchmarks."""

from functools import partial

import torch
from torch import Tensor

from advprune.attacks import Attack, Card
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t
from advprune.attacks.fab_t import fab_t
from advprune.attacks.losses import margin
from advprune.attacks.square import square
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat

CARD = Card(paper="Croce and Hein 2020", needs="gradient")

# The authors run 5,000 queries of a schedule of patch sizes made for twice as many.
_SCHEDULE = 10_000


def autoattack(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    queries: int = 5000,
    steps: int = 100,
    targets: int = 9,
    scores: Classifier | None = None,
) -> Images:
    """APGD on cross-entropy, targeted APGD, targeted FAB, Square: the standard version.

    Each attack meets the images only that are still right. The defaults are the authors' efforts.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        queries: of Square, at least 1.
        steps: of the gradient attacks, per target, at least 1.
        targets: of the targeted attacks.
        scores: what Square asks instead of the model: a faster implementation of the same function.

    Returns:
        float32 (N, C, H, W): the misclassified image of the first attack that found one, else the
        image itself.

    Raises:
        Refused: fewer steps or queries than 1, or a model without gradients.
    """
    scores = model if scores is None else scores
    attacks: list[tuple[str, Classifier, Attack]] = [
        ("apgd", model, partial(apgd, steps=steps)),
        ("apgd_t", model, partial(apgd_t, steps=steps, targets=targets)),
        ("fab_t", model, partial(fab_t, steps=steps, targets=targets)),
        ("square", scores, partial(square, queries=queries, schedule=_SCHEDULE)),
    ]
    adversarial = x.detach().clone()
    with frozen(model), frozen(scores):
        left = torch.nonzero(_right(model, x, y))[:, 0]
        for name, asked, attack in attacks:
            if len(left) == 0:
                break
            candidate = attack(asked, x[left], y[left], threat, rng.fork(name).subset(left))
            right = _right(asked, candidate, y[left])
            adversarial[left[~right]] = candidate[~right]
            left = left[right]
    return adversarial


def _right(model: Classifier, x: Images, y: Labels) -> Tensor:
    with torch.no_grad():
        return margin(model(x), y) <= 0.0
