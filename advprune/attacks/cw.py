"""The attacks of Carlini and Wagner: the smallest offset as a problem for an optimiser."""

import math

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.losses import margin
from advprune.attacks.nearest import Nearest, inside, where_right
from advprune.attacks.pgd import ascent, check_steps
from advprune.errors import Refused
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat, per_image

CARD = Card(paper="Carlini and Wagner 2017", needs="gradient")

# Section 6 of the paper: the share of what was reached that tau falls to.
_TAU = 0.9
# By how much a weight changes while it has only failed or only succeeded.
_LEAP, _DOUBLE = 10.0, 2.0
# Walls of the box lie at infinity in the variable; this near to one a pixel starts at most.
_INWARDS = 0.999


def cw(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    rounds: int = 9,
    rate: float = 0.05,
) -> Images:
    """The nearest misclassified image, or where it points to, inside the ball (see `inside`).

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: not drawn from.
        steps, rounds, rate: see `nearest`.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps or rounds than 1, or a model without gradients.
    """
    found = nearest(model, x, y, threat, rng, steps=steps, rounds=rounds, rate=rate)
    return inside(model, x, y, found, threat)


def nearest(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    rounds: int = 9,
    rate: float = 0.05,
) -> Nearest:
    """Adam on the distance plus a weight times the margin that is still missing (section 5).

    The variable is the inverse hyperbolic tangent of the image, which keeps it in the box. In the
    Euclidean norm each round starts afresh from the image, and the rounds bisect the weight. In the
    maximum norm the distance is the sum of what pixels have moved beyond tau; each round goes on
    from the last, with a smaller tau after a success and a greater weight after a failure.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        threat: its norm and box count, its eps does not.
        rng: not drawn from.
        steps: per round, at least 1.
        rounds: at least 1.
        rate: of Adam, in pixel values in the middle of the box; falls to zero in each round.

    Raises:
        Refused: fewer steps or rounds than 1, or a model without gradients.
    """
    check_steps(steps)
    if rounds < 1:
        raise Refused(f"attack cw: rounds must be at least 1, got {rounds}")

    def search(x: Images, y: Labels) -> Nearest:
        state = _Search(model, x, y, threat)
        for _ in range(rounds):
            state.go(steps, rate)
        return Nearest(state.best, state.distance)

    return where_right(model, x, y, search)


class _Search:
    """The search for images that are right as they are, from round to round."""

    def __init__(self, model: Classifier, x: Images, y: Labels, threat: Threat) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.best, self.distance = x.detach().clone(), torch.full_like(x[:, 0, 0, 0], math.inf)
        self.half = (threat.high - threat.low) / 2.0
        self.variable = self.begin = self._variable(x)
        self.weight = torch.ones_like(self.distance)
        self.too_low = torch.zeros_like(self.distance)
        self.enough = torch.full_like(self.distance, math.inf)
        self.tau = torch.full_like(self.distance, threat.high - threat.low)

    def go(self, steps: int, rate: float) -> None:
        """One round, and the weight and tau of the next."""
        broken = self._descend(steps, rate)
        if self.threat.norm == "l2":
            self.too_low = torch.where(broken, self.too_low, self.weight)
            self.enough = torch.where(broken, self.weight, self.enough)
            between = (self.too_low * self.enough).sqrt()
            between = torch.where(self.enough.isinf(), self.weight * _LEAP, between)
            self.weight = torch.where(self.too_low == 0.0, self.weight / _LEAP, between)
            self.variable = self.begin
        else:
            reached = torch.minimum(self.tau, self.distance)
            self.tau = torch.where(broken, _TAU * reached, self.tau)
            self.weight = torch.where(broken, self.weight, self.weight * _DOUBLE)

    def _descend(self, steps: int, rate: float) -> Tensor:
        """Adam (Kingma and Ba 2015); bool (N,), whether a misclassified image was met.

        In the maximum norm one counts only if it lies within tau.
        """
        variable, mean, square = self.variable, 0.0, 0.0
        met = torch.zeros_like(self.y, dtype=torch.bool)
        for step in range(1, steps + 1):
            images = self._images(variable)
            rise, logits = ascent(self.model, images, self.y, margin)
            missing, offset = margin(logits, self.y) <= 0.0, images - self.x
            length = self.threat.length(offset)
            met |= ~missing & ((length <= self.tau) | (self.threat.norm == "l2"))
            closer = ~missing & (length < self.distance)
            self.best = torch.where(per_image(closer), images, self.best)
            self.distance = torch.where(closer, length, self.distance)
            slope = self._slope(offset) - per_image(self.weight * missing) * rise
            slope = slope * (1.0 - (variable / self.half).tanh().square())
            mean = 0.9 * mean + 0.1 * slope
            square = 0.999 * square + 0.001 * slope.square()
            deviation = (square / (1.0 - 0.999**step)).sqrt() + 1e-8
            size = rate * (1.0 - (step - 1) / steps) / (1.0 - 0.9**step)
            variable = variable - size * mean / deviation
        self.variable = variable
        return met

    def _slope(self, offset: Tensor) -> Tensor:
        """The gradient of the distance: of its square, or of the excess over tau."""
        if self.threat.norm == "l2":
            return 2.0 * offset
        return offset.sign() * (offset.abs() > per_image(self.tau))

    def _variable(self, images: Images) -> Tensor:
        centred = (images - self.threat.low) / self.half - 1.0
        return self.half * centred.clamp(-_INWARDS, _INWARDS).atanh()

    def _images(self, variable: Tensor) -> Images:
        return self.threat.low + self.half * ((variable / self.half).tanh() + 1.0)
