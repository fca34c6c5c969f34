"""FMN for one image: algorithm 1 of Pintor et al. 2021."""

import math

import torch
from torch import Tensor

from advprune.types import Threat
from oracles.one_image import Classify, cross_entropy, dlr, length, margin, slope, unit

LOSSES = {"margin": margin, "dlr": dlr, "cross_entropy": cross_entropy}


def nearest(
    classify: Classify,
    x: Tensor,
    y: int,
    threat: Threat,
    *,
    steps: int,
    loss: str,
    direction: str,
    step_size: float,
    gamma: float,
    momentum: float,
) -> tuple[Tensor, float]:
    """The nearest misclassified image and its distance."""
    if margin(classify(x), y) > 0:
        return x, 0.0
    best, distance, met, point, radius = x, math.inf, False, x, math.inf
    velocity = torch.zeros_like(x)
    corner = torch.maximum(x - threat.low, threat.high - x)
    for k in range(steps + 1):
        chosen = LOSSES[loss] if met else margin
        _, gradient, logits = slope(classify, point, lambda z, chosen=chosen: chosen(z, y))
        value, here = float(margin(logits, y)), length(point - x, threat.norm)
        if value > 0 and here < distance:
            best, distance = point, here
        share = (1 + math.cos(math.pi * k / steps)) / 2
        change = 0.001 + (gamma - 0.001) * share
        if value > 0:
            radius, met = min(radius * (1 - change), distance), True
        elif met:
            radius = radius * (1 + change)
        else:
            dual = gradient.abs().sum() if threat.norm == "linf" else gradient.norm()
            radius = (here + abs(value) / float(dual)) * (1 + change)
        radius = min(radius, length(corner, threat.norm))
        velocity = momentum * velocity + unit(gradient, "linf" if direction == "sign" else "l2")
        moved = point + step_size * (0.01 + 0.99 * share) * velocity
        offset = moved.clamp(threat.low, threat.high) - x
        if threat.norm == "linf":
            offset = offset.clamp(-radius, radius)
        elif length(offset, "l2") > radius:
            offset = offset * (radius / length(offset, "l2"))
        point = x + offset
    return best, distance
