"""Fast minimum-norm attack: follows the boundary down to the nearest misclassified image."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.losses import Loss, cross_entropy, dlr, margin
from advprune.attacks.nearest import Nearest, inside, where_right
from advprune.attacks.pgd import ascent, check_steps
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat, per_image

CARD = Card(paper="Pintor et al. 2021", needs="gradient")

_TINY = 1e-12
# Where the step size, as a share of its first value, and gamma end.
_LAST_STEP, _LAST_GAMMA = 0.01, 0.001

LossName = Literal["margin", "dlr", "cross_entropy"]
Direction = Literal["l2", "sign"]


@dataclass(frozen=True)
class Tuning:
    """The settings of the search, those of the paper by default; `tuning.tune` finds better ones.

    steps: at least 1.
    loss: what rises on the way out.
    direction: a step along the gradient at Euclidean length one, or along its sign.
    step_size: of the first step, in pixel values times that direction; falls to 1 % on a cosine.
    gamma: share by which the ball first shrinks or grows, in (0, 1); falls to 0.001 on a cosine.
    momentum: share of the last direction that is kept, in [0, 1).
    """

    steps: int = 100
    loss: LossName = "margin"
    direction: Direction = "l2"
    step_size: float = 1.0
    gamma: float = 0.05
    momentum: float = 0.0


_PAPER = Tuning()
_LOSSES: dict[LossName, Loss] = {"margin": margin, "dlr": dlr, "cross_entropy": cross_entropy}


def fmn(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = _PAPER.steps,
    loss: LossName = _PAPER.loss,
    direction: Direction = _PAPER.direction,
    step_size: float = _PAPER.step_size,
    gamma: float = _PAPER.gamma,
    momentum: float = _PAPER.momentum,
) -> Images:
    """The nearest misclassified image, or where it points to, inside the ball (see `inside`).

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: not drawn from.
        steps, loss, direction, step_size, gamma, momentum: see `Tuning`.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    tuning = Tuning(steps, loss, direction, step_size, gamma, momentum)
    return inside(model, x, y, nearest(model, x, y, threat, rng, tuning=tuning), threat)


def nearest(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    tuning: Tuning = _PAPER,
) -> Nearest:
    """Steps up the loss inside a ball that shrinks where the image is broken and else grows.

    (Algorithm 1 of the paper.) Until an image has been broken once, the radius is a first-order
    estimate of its distance to the boundary: the margin over the dual norm of its gradient. The
    last point is scored too.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        threat: its norm and box count, its eps does not.
        rng: not drawn from.

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    check_steps(tuning.steps)
    return where_right(model, x, y, lambda x, y: _search(model, x, y, threat, tuning))


def _search(model: Classifier, x: Images, y: Labels, threat: Threat, tuning: Tuning) -> Nearest:
    """The search for images that are right as they are."""
    best, distance = x.detach().clone(), torch.full_like(x[:, 0, 0, 0], math.inf)
    met = torch.zeros_like(y, dtype=torch.bool)
    farthest = threat.length(torch.maximum(x - threat.low, threat.high - x))
    radius, candidate, velocity = distance, best, torch.zeros_like(x)

    def rising(logits: Tensor, labels: Labels) -> Tensor:
        # The margin is zero on the boundary; only such a loss tells how far away that is.
        rises = margin(logits, labels)
        return torch.where(met, _LOSSES[tuning.loss](logits, labels), rises)

    # One more round than steps: the last point is scored too.
    for iteration in range(tuning.steps + 1):
        gradient, logits = ascent(model, candidate, y, rising)
        here, length = margin(logits, y).float(), threat.length(candidate - x)
        broken = here > 0.0
        closer = broken & (length < distance)
        best = torch.where(per_image(closer), candidate, best)
        distance = torch.where(closer, length, distance)

        cosine = (1.0 + math.cos(math.pi * iteration / tuning.steps)) / 2.0
        gamma = _LAST_GAMMA + (tuning.gamma - _LAST_GAMMA) * cosine
        size = tuning.step_size * (_LAST_STEP + (1.0 - _LAST_STEP) * cosine)
        estimate = length + here.abs() / _dual(gradient, threat).clamp_min(_TINY)
        # The estimate grows too, or the search could near the boundary for ever and never cross it.
        outside = torch.where(met, radius, estimate) * (1.0 + gamma)
        radius = torch.where(broken, torch.minimum(radius * (1.0 - gamma), distance), outside)
        radius = torch.minimum(radius, farthest)
        met = met | broken

        velocity = tuning.momentum * velocity + _along(gradient, tuning.direction)
        candidate = _within(candidate + size * velocity, x, radius, threat)
    return Nearest(best, distance)


def _dual(gradient: Tensor, threat: Threat) -> Tensor:
    """How much a linear function rises at most per unit of distance, (N,)."""
    flat = gradient.flatten(1)
    return flat.abs().sum(dim=1) if threat.norm == "linf" else flat.norm(dim=1)


def _along(gradient: Tensor, direction: Direction) -> Tensor:
    if direction == "sign":
        return gradient.sign()
    return gradient / per_image(gradient.flatten(1).norm(dim=1).clamp_min(_TINY))


def _within(candidate: Images, x: Images, radius: Tensor, threat: Threat) -> Images:
    """Into the box and into the ball of each image's own radius, (N,).

    The box comes first: cut to it last, an image would fall short of its sphere for ever.
    """
    offset, bound = candidate.clamp(threat.low, threat.high) - x, per_image(radius)
    if threat.norm == "linf":
        return x + offset.clamp(-bound, bound)
    length = per_image(threat.length(offset).clamp_min(_TINY))
    return x + offset * (bound / length).clamp_max(1.0)
