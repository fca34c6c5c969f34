"""In which numbers the layers of a network compute while it trains.

float32 throughout; or bfloat16 in the layers that multiply, over float32 weights, statistics,
logits, losses, scores and rates. What is measured afterwards is always measured in float32.
"""

from typing import Literal, get_args

import torch

from advprune.errors import Refused
from advprune.types import Classifier, Images, Logits

Precision = Literal["fp32", "bf16"]


def answer(net: Classifier, images: Images, precision: Precision) -> Logits:
    """Logits of a network whose layers compute in this precision.

    What learns, batch statistics, the input and the logits are float32 in both.

    Raises:
        Refused: the precision is not known.
    """
    if precision not in get_args(Precision):
        raise Refused(f"precision: {precision!r} is not known; use fp32 or bf16")
    if precision == "fp32":
        return net(images)
    with torch.autocast(images.device.type, torch.bfloat16):
        return net(images).float()
