"""How far images of different classes lie apart, which an attack's radius must stay below.

Where two images of different classes are nearer than twice the radius, some image lies within the
radius of both, and no classifier is right about both (Yang et al. 2020, "A Closer Look at
Accuracy vs. Robustness").
"""

import math

import torch
from torch import Tensor

_MOST_IMAGES = 512
_MOST_DIFFERENCES = 10**9  # of pixels, a second or two


def sample_size(pixels: int) -> int:
    """How many images of so many values each are compared with each other."""
    return max(2, min(_MOST_IMAGES, math.isqrt(_MOST_DIFFERENCES // pixels)))


def separation(images: Tensor, labels: Tensor) -> float:
    """The smallest distance in the maximum norm between images of different classes, in [0, 1].

    Args:
        images: uint8 (n, C, H, W)
        labels: int64 (n,)

    Returns:
        1.0 where all are of one class.
    """
    flat = images.flatten(1).to(torch.int16)
    nearest = 255
    for row in range(len(flat) - 1):
        others = flat[row + 1 :][labels[row + 1 :] != labels[row]]
        if len(others):
            apart = (others - flat[row]).abs_().amax(1)
            nearest = min(nearest, int(apart.min()))
    return nearest / 255
