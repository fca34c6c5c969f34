"""Auto-PGD: projected gradient descent that chooses its step size by itself."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.losses import Loss, cross_entropy, margin
from advprune.attacks.pgd import ascent, check_steps
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat, per_image

CARD = Card(paper="Croce and Hein 2020", needs="gradient")

# Section 3 of the paper: the share of a move that is new, the rest being the one before, and the
# checkpoints: the first after 22 % of the steps, each interval shorter by 3 %, down to 6 %.
_NEW = 0.75
_FIRST, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06


def apgd(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    rho: float = 0.75,
    confidence: float = 0.0,
) -> Images:
    """Ascent with momentum whose steps halve where the loss stalls (algorithm 1).

    For each image the point of greatest margin on the way; the image itself counts as met. An image
    leaves the batch once its margin exceeds `confidence`.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        steps: per start, at least 1.
        loss: per image, to be maximised, and separable: images leave, so it sees part of them.
        rho: share of the steps between two checkpoints that must raise the loss, in [0, 1].
        confidence: in logits; infinite to go on to the end with every image.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    plan = Plan(loss, steps, rho, confidence)
    return climb(model, x, y, threat, rng, [y] * restarts, plan)


class Plan(NamedTuple):
    """How to climb: the settings of `apgd` of these names."""

    loss: Loss
    steps: int
    rho: float
    confidence: float


def climb(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    aims: Iterable[Tensor],
    plan: Plan,
) -> Images:
    """One run of APGD for each aim, with the images that are left; the worst points of them all.

    Args:
        aims: (N, ...) each: what the loss is told beside the logits, such as the label.
    """
    check_steps(plan.steps)
    with frozen(model):
        with torch.no_grad():
            worst = _Worst(x.detach().clone(), margin(model(x), y))
        for number, aim in enumerate(aims):
            left = torch.nonzero(worst.margin <= plan.confidence)[:, 0]
            if len(left) > 0:
                stream = rng.fork(f"run {number}").subset(left)
                state = _start(
                    model, x[left], y[left], aim[left], left, threat, stream, plan, worst
                )
                _run(model, state, threat, plan, worst)
    return worst.images


@dataclass
class _Worst:
    """The point of greatest margin so far, and this margin, for each image of the batch."""

    images: Images
    margin: Tensor

    def offer(self, rows: Tensor, candidates: Images, margins: Tensor) -> Tensor:
        """Takes what is worse than before; returns the greatest margins of these rows."""
        better = margins > self.margin[rows]
        self.images[rows[better]] = candidates[better]
        self.margin[rows[better]] = margins[better]
        return self.margin[rows]


@dataclass
class _State:
    """What a run knows of each image that it still works on, (n, ...) all."""

    rows: Tensor  # where the image stands in the batch
    x: Images
    y: Labels
    aim: Tensor
    candidate: Images
    previous: Images
    gradient: Tensor
    loss: Tensor
    size: Tensor  # of the next step
    top: Images  # where the loss was highest
    top_gradient: Tensor
    top_loss: Tensor
    rises: Tensor  # steps that raised the loss, since the last checkpoint
    top_loss_then: Tensor  # at the last checkpoint
    halved_then: Tensor  # there, too

    def keep(self, stays: Tensor) -> None:
        if not bool(stays.all()):
            for field in fields(self):
                setattr(self, field.name, getattr(self, field.name)[stays])

    def climbed(self, loss: Tensor) -> None:
        """Takes note of the loss at the candidate."""
        # The first step is compared to zero, not to the start, as the authors' code does it.
        self.rises = self.rises + (loss > self.loss)
        self.loss = loss
        higher = loss > self.top_loss
        self.top = torch.where(per_image(higher), self.candidate, self.top)
        self.top_gradient = torch.where(per_image(higher), self.gradient, self.top_gradient)
        self.top_loss = torch.where(higher, loss, self.top_loss)

    def checkpoint(self, enough: float) -> None:
        """Halves the step, and goes back to the top, where few steps rose or nothing was gained.

        The two conditions of section 3; the second counts only where the step is as long as it was.
        """
        halve = (self.rises <= enough) | (~self.halved_then & (self.top_loss <= self.top_loss_then))
        self.size = torch.where(halve, self.size / 2, self.size)
        self.candidate = torch.where(per_image(halve), self.top, self.candidate)
        self.gradient = torch.where(per_image(halve), self.top_gradient, self.gradient)
        self.rises = torch.zeros_like(self.rises)
        self.top_loss_then, self.halved_then = self.top_loss, halve


def _on_the_surface(x: Images, threat: Threat, rng: ImageRandom) -> Images:
    """A random direction, followed to the surface of the ball: where the authors start."""
    shape = x.shape[1:]
    noise = rng.normal(*shape) if threat.norm == "l2" else 2.0 * rng.uniform(*shape) - 1.0
    unit = noise / per_image(threat.length(noise) + 1e-12)
    return (x + threat.eps * unit).clamp(threat.low, threat.high)


def _start(
    model: Classifier,
    x: Images,
    y: Labels,
    aim: Tensor,
    rows: Tensor,
    threat: Threat,
    rng: ImageRandom,
    plan: Plan,
    worst: _Worst,
) -> _State:
    start = _on_the_surface(x, threat, rng)
    gradient, logits = ascent(model, start, aim, plan.loss)
    value = plan.loss(logits, aim)
    nothing = torch.zeros_like(value)
    size = torch.full_like(x[:, 0, 0, 0], 2.0 * threat.eps)
    state = _State(
        rows, x, y, aim, start, start, gradient, nothing, size, top=start, top_gradient=gradient,
        top_loss=value, rises=nothing, top_loss_then=value, halved_then=nothing == 0,
    )  # fmt: skip
    state.keep(worst.offer(rows, start, margin(logits, y)) <= plan.confidence)
    return state


def _run(model: Classifier, state: _State, threat: Threat, plan: Plan, worst: _Worst) -> None:
    shorter, shortest = max(int(_SHORTER * plan.steps), 1), max(int(_SHORTEST * plan.steps), 1)
    interval, since = max(int(_FIRST * plan.steps), 1), 0
    for iteration in range(plan.steps):
        if len(state.rows) == 0:
            return
        moved = _move(state, threat, 1.0 if iteration == 0 else _NEW)
        state.previous, state.candidate = state.candidate, moved
        state.gradient, logits = ascent(model, moved, state.aim, plan.loss)
        state.climbed(plan.loss(logits, state.aim))
        reached = worst.offer(state.rows, moved, margin(logits, state.y))
        since += 1
        if since == interval:
            state.checkpoint(plan.rho * interval)
            interval, since = max(interval - shorter, shortest), 0
        state.keep(reached <= plan.confidence)


def _move(state: _State, threat: Threat, new: float) -> Images:
    """A step along the gradient, mixed with the move before."""
    before = state.candidate - state.previous
    step = per_image(state.size) * threat.steepest(state.gradient)
    ahead = threat.project(state.candidate + step, state.x)
    mixed = state.candidate + (ahead - state.candidate) * new + before * (1.0 - new)
    return threat.project(mixed, state.x)
