"""The shapes and ranges that everything else agrees on.

Images   float32 (N, C, H, W) in [0, 1]; normalisation is the first layer inside the network.
Labels   int64 (N,) in [0, K).
Logits   float32 (N, K), before any softmax.
Masks    weight name -> bool tensor, True where the weight is kept; broadcastable to the weight.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from advprune.errors import Refused

Images = Tensor
Labels = Tensor
Logits = Tensor
Masks = dict[str, Tensor]
Classifier = Callable[[Images], Logits]

_TINY = 1e-12  # keeps the direction of a zero gradient zero


Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Threat:
    """What an adversary may do: move an image by at most `eps` in a norm, and stay inside the box.

    Raises:
        Refused: the norm is not known, or eps is negative, not finite or, in the maximum norm,
            above the width of the box.
    """

    eps: float
    low: float = 0.0
    high: float = 1.0
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise Refused(f"threat: norm {self.norm!r} is not known; use 'linf' or 'l2'")
        if self.norm == "linf" and not 0.0 <= self.eps <= self.high - self.low:
            hint = f"; did you mean {self.eps:g}/255?" if self.eps > 1 else ""
            raise Refused(f"threat: eps must lie in [0, 1], got {self.eps:g}{hint}")
        if not 0.0 <= self.eps < math.inf:
            raise Refused(f"threat: eps must be finite and not negative, got {self.eps:g}")

    def project(self, candidate: Images, images: Images) -> Images:
        """A point of the ball around `images` and of the box: `candidate` itself if it is one.

        In the maximum norm it is the nearest such point.
        """
        if self.norm == "linf":
            nearest = torch.clamp(candidate, images - self.eps, images + self.eps)
            return nearest.clamp(self.low, self.high)
        offset = candidate - images
        # Cutting to the box afterwards only shortens the offset: the images lie inside.
        scale = (self.eps / self.length(offset).clamp_min(_TINY)).clamp_max(1.0)
        return (images + offset * per_image(scale)).clamp(self.low, self.high)

    def length(self, offset: Tensor) -> Tensor:
        """The norm of each image's offset, (N,)."""
        flat = offset.flatten(1)
        return flat.abs().amax(dim=1) if self.norm == "linf" else flat.norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length one (or zero) that raises a function of this gradient fastest."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / per_image(self.length(gradient).clamp_min(_TINY))

    def unbounded(self, shape: tuple[int, ...]) -> "Threat":
        """The same threat with a ball that holds the whole box, for images of this shape."""
        width = self.high - self.low
        across = width if self.norm == "linf" else width * math.sqrt(math.prod(shape))
        return replace(self, eps=across)

    def to_dict(self) -> dict[str, float | str]:
        return asdict(self)


def per_image(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1): one factor for each image."""
    return values[:, None, None, None]
