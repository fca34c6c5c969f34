"""The shapes and ranges that everything else agrees on.

Images   float32 (N, C, H, W) in [0, 1]; normalisation is the first layer inside the network.
Labels   int64 (N,) in [0, K).
Logits   float32 (N, K), before any softmax.
Masks    weight name -> bool tensor, True where the weight is kept; broadcastable to the weight.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from advprune.errors import Refused

Images = Tensor
Labels = Tensor
Logits = Tensor
Masks = dict[str, Tensor]
Classifier = Callable[[Images], Logits]


@dataclass(frozen=True)
class Threat:
    """What an adversary may do: move every pixel by at most `eps` and stay inside the box.

    Raises:
        Refused: eps is negative, not a number, or above the width of the box.
    """

    eps: float
    low: float = 0.0
    high: float = 1.0
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm != "linf":
            raise Refused(f"threat: norm {self.norm!r} is not known; use 'linf'")
        if not 0.0 <= self.eps <= self.high - self.low:
            hint = f"; did you mean {self.eps:g}/255?" if self.eps > 1 else ""
            raise Refused(f"threat: eps must lie in [0, 1], got {self.eps:g}{hint}")

    def project(self, candidate: Images, images: Images) -> Images:
        """The point of the ball around `images`, and of the box, that is nearest to `candidate`."""
        nearest = torch.clamp(candidate, images - self.eps, images + self.eps)
        return nearest.clamp(self.low, self.high)

    def to_dict(self) -> dict[str, float | str]:
        return asdict(self)
