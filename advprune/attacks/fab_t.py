"""Fast adaptive boundary attack: the nearest image of one wrong class after another."""

import math

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.apgd_t import strongest_rivals
from advprune.attacks.losses import margin
from advprune.attacks.nearest import Nearest, inside
from advprune.attacks.pgd import ascent, check_steps
from advprune.attacks.projections import to_plane
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Logits, Threat, per_image

CARD = Card(paper="Croce and Hein 2020 (FAB)", needs="gradient")

# The paper's: how far a move goes beyond the plane, the greatest weight of the original image, and
# what share of the way back to a misclassified image is gone on from.
_OVERSHOOT, _PULL, _BACK = 1.05, 0.1, 0.9


def fab_t(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    targets: int = 9,
) -> Images:
    """The nearest misclassified image, or where it points to, inside the ball (see `inside`).

    An image leaves the search once it is misclassified inside the ball.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: not drawn from.
        steps: per target, at least 1.
        targets: the other classes of highest logits at x; all of them if there are fewer.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    found = _search(model, x, y, threat, steps, targets, enough=threat.eps)
    return inside(model, x, y, found, threat)


def nearest(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    targets: int = 9,
) -> Nearest:
    """The nearest misclassified image that the search of `fab_t` meets when it goes on to the end.

    Args: as for `fab_t`; the norm and the box of the threat count, its eps does not.
    """
    return _search(model, x, y, threat, steps, targets, enough=0.0)


def _search(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    steps: int,
    targets: int,
    enough: float,
) -> Nearest:
    """Targeted FAB for each rival; an image leaves once one is found at a distance of `enough`."""
    check_steps(steps)
    found = Nearest(x.detach().clone(), torch.full_like(x[:, 0, 0, 0], math.inf))
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        found.distance[~(margin(logits, y) <= 0.0)] = 0.0
        for rival in strongest_rivals(logits, y, targets).unbind(1):
            left = torch.nonzero(found.distance > enough)[:, 0]
            _towards(model, x[left], y[left], rival[left], threat, steps, enough, left, found)
    return found


def _towards(
    model: Classifier,
    x: Images,
    y: Labels,
    rival: Labels,
    threat: Threat,
    steps: int,
    enough: float,
    rows: Tensor,
    found: Nearest,
) -> None:
    """One run; writes what it finds into the rows of `found`.

    In each step the boundary is taken for the plane that touches it at the point, and the way to
    that plane is mixed from the ways of the point and of the image itself.
    """
    pairs, point = torch.stack([y, rival], dim=1), x
    # One more round than steps: the last point is scored too.
    for _ in range(steps + 1):
        if len(rows) == 0:
            return
        gradient, logits = ascent(model, point, pairs, _lead)
        broken, length = margin(logits, y) > 0.0, threat.length(point - x)
        closer = broken & (length < found.distance[rows])
        found.images[rows[closer]] = point[closer]
        found.distance[rows[closer]] = length[closer]
        # The plane at a misclassified point serves for going on from the way back, too: it touches
        # the boundary about as near, and saves the forward and backward that the authors spend.
        base = torch.where(per_image(broken), x + _BACK * (point - x), point)
        point = _move(x, base, point, _lead(logits, pairs).to(x.dtype), gradient, threat)
        stays = found.distance[rows] > enough
        if not bool(stays.all()):
            rows, x, y, pairs, point = rows[stays], x[stays], y[stays], pairs[stays], point[stays]


def _lead(logits: Logits, pairs: Tensor) -> Tensor:
    """By how much the target is ahead of the label, for pairs of (label, target)."""
    own, target = logits.gather(1, pairs).unbind(1)
    return target - own


def _move(
    x: Images, base: Images, point: Images, lead: Tensor, gradient: Tensor, threat: Threat
) -> Images:
    """From `base` over the plane where the lead, linear around `point`, is zero, and towards x."""

    def beyond(start: Images) -> tuple[Tensor, Tensor]:
        missing = -lead - (gradient * (start - point)).flatten(1).sum(dim=1)
        way = to_plane(start, gradient, missing, threat)
        return start + _OVERSHOOT * way, threat.length(way).clamp_min(1e-8)

    (onward, near), (afresh, far) = beyond(base), beyond(x)
    pull = per_image((near / (near + far)).clamp_max(_PULL))
    return (onward * (1.0 - pull) + afresh * pull).clamp(threat.low, threat.high)
