"""What attacks find that look for the nearest misclassified image, not for one in a given ball."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advprune.attacks.losses import margin
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat, per_image


class Nearest(NamedTuple):
    """The nearest misclassified image that was met, for each image.

    images: float32 (N, C, H, W); the image itself where none was met.
    distance: float32 (N,), in the norm of the threat: 0 where the image itself is misclassified,
        infinite where none was met. A failure of the search is no success of the attack.
    """

    images: Images
    distance: Tensor


# The threat gives the norm and the box; its eps is at most a hint when to stop.
Search = Callable[[Classifier, Images, Labels, Threat, ImageRandom], Nearest]


def where_right(
    model: Classifier, x: Images, y: Labels, search: Callable[[Images, Labels], Nearest]
) -> Nearest:
    """A search for those images alone that are right as they are; the others are at distance 0."""
    found = Nearest(x.detach().clone(), torch.full_like(x[:, 0, 0, 0], math.inf))
    with frozen(model):
        with torch.no_grad():
            right = margin(model(x), y) <= 0.0
        found.distance[~right] = 0.0
        if bool(right.any()):
            found.images[right], found.distance[right] = search(x[right], y[right])
    return found


def inside(model: Classifier, x: Images, y: Labels, found: Nearest, threat: Threat) -> Images:
    """The images of the threat's ball that a search points at.

    A nearest image lies on the boundary, where the rounding of an engine decides. Its direction is
    therefore followed to the surface of the ball, and the point of greater margin is taken.

    Returns:
        float32 (N, C, H, W) in the ball and the box; the image itself where nothing was met.
    """
    offset = found.images - x
    length = threat.length(offset).clamp_min(1e-12)
    surface = threat.project(x + offset * per_image(threat.eps / length), x)
    near = torch.where(per_image(found.distance <= threat.eps), found.images, x)
    with frozen(model), torch.no_grad():
        surer = margin(model(surface), y) > margin(model(near), y)
    return torch.where(per_image(surer & found.distance.isfinite()), surface, near)
