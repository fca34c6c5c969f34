"""What an attack maximises, per image: (logits (N, K), labels (N,)) -> (N,)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from advprune.errors import Refused
from advprune.types import Labels, Logits

Loss = Callable[[Logits, Labels], Tensor]


def cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """-log p(label)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Tensor:
    """Highest other logit minus the true one: above zero means misclassified."""
    own = labels[:, None]
    others = logits.scatter(1, own, float("-inf")).amax(dim=1)
    return others - logits.gather(1, own)[:, 0]


def dlr(logits: Logits, labels: Labels) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020): blind to shift and scale.

    -(z_y - max_{i != y} z_i) / (z_1st - z_3rd), the logits in descending order.

    Raises:
        Refused: fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise Refused(f"loss dlr: needs at least 3 classes, got {logits.shape[1]}; use margin")
    top = logits.topk(3, dim=1).values
    # The constant is the authors': it keeps the ratio finite where three logits are equal.
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
