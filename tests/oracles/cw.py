"""Carlini and Wagner 2017 for one image: the objective as written, torch's Adam, autograd."""

import math

import torch
from torch import Tensor

from advprune.types import Threat
from oracles.one_image import Classify, length, margin


def nearest(
    classify: Classify, x: Tensor, y: int, threat: Threat, steps: int, rounds: int, rate: float
) -> tuple[Tensor, float]:
    """The nearest misclassified image and its distance."""
    if margin(classify(x), y) > 0:
        return x, 0.0
    best, distance, half = x, math.inf, (threat.high - threat.low) / 2
    middle = (threat.low + threat.high) / 2
    begin = half * torch.atanh(((x - middle) / half).clamp(-0.999, 0.999))
    variable, weight, failed, worked, tau = begin, 1.0, 0.0, math.inf, 2 * half
    for _ in range(rounds):
        leaf = (begin if threat.norm == "l2" else variable).clone().requires_grad_()
        optimizer = torch.optim.Adam([leaf], lr=rate)
        met = False
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (steps - step) / steps
            image = middle + half * torch.tanh(leaf / half)
            value, here = margin(classify(image), y), length((image - x).detach(), threat.norm)
            if value > 0:
                met = met or threat.norm == "l2" or here <= tau
                if here < distance:
                    best, distance = image.detach().clone(), here
            if threat.norm == "l2":
                cost = ((image - x) ** 2).sum()
            else:
                cost = torch.relu((image - x).abs() - tau).sum()
            optimizer.zero_grad()
            (cost + weight * torch.relu(-value)).backward()
            optimizer.step()
        variable = leaf.detach()
        if threat.norm == "linf":
            tau, weight = (0.9 * min(tau, distance), weight) if met else (tau, 2 * weight)
            continue
        failed, worked = (failed, weight) if met else (weight, worked)
        if failed == 0.0:
            weight = weight / 10
        elif worked == math.inf:
            weight = weight * 10
        else:
            weight = math.sqrt(failed * worked)
    return best, distance
