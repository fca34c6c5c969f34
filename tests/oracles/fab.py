"""Targeted FAB for one image (Croce and Hein 2020), the way to a plane found by bisection."""

import torch
from torch import Tensor

from advprune.types import Threat
from oracles.one_image import Classify, length, margin, slope, unit


def to_plane(x: Tensor, normal: Tensor, gain: float, threat: Threat) -> Tensor:
    """Every pixel on its way until it meets a wall; the time is that at which the gain is there."""
    way = unit(normal, threat.norm) * (1.0 if gain >= 0 else -1.0)

    def offset(time: float) -> Tensor:
        return (x + time * way).clamp(threat.low, threat.high) - x

    early, late = 0.0, 1e6
    if float((normal * offset(late)).sum().abs()) < abs(gain):
        return offset(late)  # no point of the box is on the plane
    for _ in range(60):
        middle = (early + late) / 2
        enough = float((normal * offset(middle)).sum().abs()) >= abs(gain)
        early, late = (early, middle) if enough else (middle, late)
    return offset(late)


def nearest(
    classify: Classify, x: Tensor, y: int, threat: Threat, steps: int, targets: int, enough: float
) -> tuple[Tensor, float]:
    """The nearest misclassified image and its distance; over once one is within `enough`."""
    logits = classify(x).detach()
    if margin(logits, y) > 0:
        return x, 0.0
    best, distance = x, float("inf")
    order = [k for k in logits.argsort(descending=True).tolist() if k != y]
    for rival in order[:targets]:
        point = x
        for _ in range(steps + 1):
            if distance <= enough:
                return best, distance
            lead, gradient, logits = slope(classify, point, lambda z, t=rival: z[t] - z[y])
            broken, here = bool(margin(logits, y) > 0), length(point - x, threat.norm)
            if broken and here < distance:
                best, distance = point, here
            base = x + 0.9 * (point - x) if broken else point
            ways = [
                to_plane(start, gradient, -lead - float((gradient * (start - point)).sum()), threat)
                for start in (base, x)
            ]
            near, far = (max(length(way, threat.norm), 1e-8) for way in ways)
            pull = min(near / (near + far), 0.1)
            point = (1 - pull) * (base + 1.05 * ways[0]) + pull * (x + 1.05 * ways[1])
            point = torch.clamp(point, threat.low, threat.high)
    return best, distance
