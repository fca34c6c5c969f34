"""What the plain attacks share: one image (C, H, W) in double precision, no batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from advprune.types import Norm, Threat

Classify = Callable[[Tensor], Tensor]  # (C, H, W) -> (K,)
Loss = Callable[[Tensor], Tensor]  # (K,) -> ()


def length(offset: Tensor, norm: Norm) -> float:
    flat = offset.flatten()
    return float(flat.abs().max() if norm == "linf" else (flat @ flat).sqrt())


def unit(gradient: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    size = length(gradient, norm)
    return gradient / size if size > 0 else gradient


def into(point: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Into the ball, then into the box."""
    offset = point - x
    if threat.norm == "linf":
        offset = offset.clamp(-threat.eps, threat.eps)
    elif length(offset, "l2") > threat.eps:
        offset = offset * (threat.eps / length(offset, "l2"))
    return (x + offset).clamp(threat.low, threat.high)


def margin(logits: Tensor, y: int) -> Tensor:
    return torch.stack([z for k, z in enumerate(logits) if k != y]).max() - logits[y]


def cross_entropy(logits: Tensor, y: int) -> Tensor:
    return torch.log(torch.exp(logits).sum()) - logits[y]


def dlr(logits: Tensor, y: int) -> Tensor:
    first, _, third = logits.sort(descending=True).values[:3]
    return margin(logits, y) / (first - third)


def slope(classify: Classify, x: Tensor, loss: Loss) -> tuple[float, Tensor, Tensor]:
    """The loss at x, its gradient, and the logits."""
    leaf = x.detach().clone().requires_grad_()
    logits = classify(leaf)
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient, logits.detach()


def inside(
    classify: Classify, x: Tensor, y: int, found: Tensor, distance: float, threat: Threat
) -> Tensor:
    """What a search for the nearest image gives for a ball: on its surface, if that is surer."""
    if distance == float("inf"):
        return x
    near = found if distance <= threat.eps else x
    if distance == 0.0:
        return near
    surface = into(x + (found - x) * (threat.eps / length(found - x, threat.norm)), x, threat)
    surer = margin(classify(surface), y) > margin(classify(near), y)
    return surface if surer else near
