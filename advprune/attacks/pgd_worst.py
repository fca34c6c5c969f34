"""Projected gradient descent, as evaluation uses it: the worst iterate of several runs counts."""

import torch

from advprune.attacks import Card
from advprune.attacks.losses import Loss, cross_entropy, margin
from advprune.attacks.pgd import ascent, check_steps, starting_point, step
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat

CARD = Card(paper="Madry et al. 2018", needs="gradient")


def pgd_worst(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 50,
    restarts: int = 2,
    loss: Loss = cross_entropy,
    confidence: float = 0.0,
) -> Images:
    """PGD from `restarts` uniform starts; for each image the point of greatest margin on the way.

    Broken points have the greatest margins, so one is returned wherever one was met. The image
    itself counts as met. An image leaves the batch once its margin exceeds `confidence`.

    Steps shrink linearly from the ball's diameter, where APGD starts too (Croce and Hein 2020): one
    start then finds more than three do with steps of 2.5 eps / steps.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        steps: per start, at least 1.
        loss: per image, to be maximised, and separable: images leave, so it sees part of them.
        confidence: in logits; above zero for images that must also break a model which differs
            from this one by up to half of it, infinite to go on to the end with every image.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    check_steps(steps)
    with frozen(model):
        with torch.no_grad():
            greatest = margin(model(x), y)
        worst = x.detach().clone()
        for restart in range(restarts):
            left = torch.nonzero(greatest <= confidence)[:, 0]
            stream = rng.fork(f"restart {restart}").subset(left)
            candidate = starting_point(x[left], threat, stream, "uniform")
            # One more round than steps: the last point is scored too.
            for iteration in range(steps + 1):
                if len(left) == 0:
                    break
                gradient, logits = ascent(model, candidate, y[left], loss)
                here = margin(logits, y[left])
                better = here > greatest[left]
                worst[left[better]] = candidate[better]
                greatest[left[better]] = here[better]
                stays = greatest[left] <= confidence
                left, candidate, gradient = left[stays], candidate[stays], gradient[stays]
                size = 2.0 * threat.eps * (1.0 - iteration / steps)
                candidate = step(candidate, gradient, x[left], threat, size)
    return worst
