"""Projected gradient descent, as training uses it: the last iterate counts."""

import math
from typing import Literal

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.losses import Loss, cross_entropy
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Logits, Threat

CARD = Card(paper="Madry et al. 2018", needs="gradient")

Start = Literal["uniform", "gaussian", "none"]


def pgd(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    start: Start = "uniform",
) -> Images:
    """x <- project(x + step_size * steepest(gradient of the loss)), `steps` times.

    (Madry et al. 2018, section 2.1.) The steepest direction is the sign of the gradient in the
    maximum norm, and the gradient at length one in the Euclidean norm.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        steps: at least 1.
        step_size: in the units of a pixel; 2.5 eps / steps if None.
        loss: per image, to be maximised; it sees the whole batch in order.
        start: uniform over the ball (Madry), gaussian of deviation 0.001 (TRADES), or none: at x.

    Returns:
        The last iterate, float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    check_steps(steps)
    if step_size is None:
        step_size = 2.5 * threat.eps / steps
    candidate = starting_point(x, threat, rng, start)
    with frozen(model):
        for _ in range(steps):
            gradient, _ = ascent(model, candidate, y, loss)
            candidate = step(candidate, gradient, x, threat, step_size)
    return candidate


def check_steps(steps: int) -> None:
    """Refuse an attack that would do nothing."""
    if steps < 1:
        raise Refused(f"attack: steps must be at least 1, got {steps}")


def starting_point(x: Images, threat: Threat, rng: ImageRandom, start: Start) -> Images:
    """Where the attack begins: a point of the ball for each image, from its own stream."""
    if start == "uniform":
        return threat.project(x + uniform_offsets(threat, rng, x.shape[1:]), x)
    if start == "gaussian":
        return threat.project(x + 0.001 * rng.normal(*x.shape[1:]), x)
    return x.detach().clone()


def uniform_offsets(threat: Threat, rng: ImageRandom, shape: tuple[int, ...]) -> Tensor:
    """Offsets that are uniform over the ball, float32 (N, C, H, W)."""
    if threat.norm == "linf":
        return threat.eps * (2.0 * rng.uniform(*shape) - 1.0)
    # A normal draw has a uniform direction; in D dimensions a radius is uniform's D-th root.
    radius = threat.eps * rng.uniform(1, 1, 1) ** (1.0 / math.prod(shape))
    return radius * threat.steepest(rng.normal(*shape))


def ascent(model: Classifier, x: Images, y: Labels, loss: Loss) -> tuple[Tensor, Logits]:
    """Gradient of the loss with respect to `x` alone, and the logits at `x`, both detached.

    The losses are summed, not averaged, so that an image's gradient does not depend on how many
    others share its batch.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        if not logits.requires_grad:
            raise Refused("attack: the model has no gradient for its input; use square")
        (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x)
    return gradient, logits.detach()


def step(candidate: Images, gradient: Tensor, x: Images, threat: Threat, size: float) -> Images:
    """One step of this size in the steepest direction, back into the ball and the box."""
    moved = candidate + size * threat.steepest(gradient)
    if threat.norm == "l2":
        return threat.project(moved, x)
    # Projecting the difference, not the image: what the common implementations do, bit for bit.
    offset = (moved - x).clamp(-threat.eps, threat.eps)
    return (x + offset).clamp(threat.low, threat.high)
