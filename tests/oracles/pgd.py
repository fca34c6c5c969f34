"""PGD of Madry et al. 2018 for one image, and the worst of its points over several starts."""

from collections.abc import Iterable

from torch import Tensor

from advprune.types import Threat
from oracles.one_image import Classify, Loss, into, margin, slope, unit


def last(
    classify: Classify,
    x: Tensor,
    threat: Threat,
    start: Tensor,
    loss: Loss,
    steps: int,
    size: float,
) -> Tensor:
    point = start
    for _ in range(steps):
        _, gradient, _ = slope(classify, point, loss)
        point = into(point + size * unit(gradient, threat.norm), x, threat)
    return point


def worst(
    classify: Classify,
    x: Tensor,
    y: int,
    threat: Threat,
    starts: Iterable[Tensor],
    loss: Loss,
    steps: int,
    confidence: float,
) -> Tensor:
    """Steps of 2 eps, then shorter by the same amount each; the last point is looked at, too."""
    best, greatest = x, float(margin(classify(x), y))
    for start in starts:
        point = start
        for k in range(steps + 1):
            if greatest > confidence:
                return best
            _, gradient, logits = slope(classify, point, loss)
            if (here := float(margin(logits, y))) > greatest:
                best, greatest = point, here
            size = 2 * threat.eps * (steps - k) / steps
            point = into(point + size * unit(gradient, threat.norm), x, threat)
    return best
