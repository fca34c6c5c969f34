"""Auto-PGD towards one wrong class after another."""

import torch
from torch import Tensor

from advprune.attacks import Card
from advprune.attacks.apgd import Plan, climb
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Logits, Threat

CARD = Card(paper="Croce and Hein 2020", needs="gradient")


def apgd_t(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    confidence: float = 0.0,
) -> Images:
    """APGD on the targeted DLR loss, for each of the classes that come nearest to the true one.

    As in `apgd`, the point of greatest margin is returned, and it need not be of a targeted class.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        steps: per start, at least 1.
        restarts: starts per target.
        targets: the other classes of highest logits at x; all of them if there are fewer.
        confidence: in logits; an image leaves the batch once its margin exceeds it.

    Returns:
        float32 (N, C, H, W).

    Raises:
        Refused: fewer steps than 1, or a model without gradients.
    """
    with frozen(model), torch.no_grad():
        rivals = strongest_rivals(model(x), y, targets)
    aims = [torch.stack([y, rival], dim=1) for rival in rivals.unbind(1) for _ in range(restarts)]
    plan = Plan(targeted_dlr, steps, 0.75, confidence)
    return climb(model, x, y, threat, rng, aims, plan)


def strongest_rivals(logits: Logits, y: Labels, count: int) -> Tensor:
    """The classes of highest logits beside the true one, descending: int64 (N, min(count, K-1))."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def targeted_dlr(logits: Logits, pairs: Tensor) -> Tensor:
    """Targeted difference of logits ratio (section 4): -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2).

    It needs four classes; with fewer it is the numerator alone, the targeted margin.

    Args:
        logits: (N, K); z_1, z_3 and z_4 are in descending order.
        pairs: int64 (N, 2), the label y and the target t.
    """
    own, target = logits.gather(1, pairs).unbind(1)
    if logits.shape[1] < 4:
        return target - own
    top = logits.topk(4, dim=1).values
    # The constant is the authors': it keeps the ratio finite where the logits are equal.
    return (target - own) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
