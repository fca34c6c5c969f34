"""Which images a model gets right, one by one: as they are, and under attack.

Averages come last. What is kept per image can be joined by AND over attacks and compared in pairs.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from advprune import ranks
from advprune.attacks import Attack
from advprune.attacks.nearest import Nearest, Search
from advprune.attacks.pgd_worst import pgd_worst
from advprune.data import Split, as_float
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.rank_rows import blocks, in_order
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Logits, Threat

BATCH = 512
TOLERANCE = 1e-6
# Two engines that add in another order stay below this; a flipped rounding step goes above it.
SAME_LOGITS = 1e-5


class InvalidEvaluation(Refused):
    """An evaluation whose numbers would mean nothing."""

    exit_code = 11


def predict(model: Classifier, images: Tensor, batch_size: int = BATCH) -> Logits:
    """Logits of all images, in eval mode and without gradients.

    Args:
        images: uint8 (N, C, H, W) or float32 in [0, 1]; N at least 1.

    Returns:
        float32 (N, K) on the device of the images.
    """
    with frozen(model), torch.no_grad():
        batches = [
            model(as_float(batch) if batch.dtype == torch.uint8 else batch)
            for batch in images.split(batch_size)
        ]
    return torch.cat(batches).float()


def is_correct(logits: Logits, labels: Labels) -> Tensor:
    """bool (N,): the label has the highest logit. Logits that are not finite are never correct."""
    return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)


def craft(
    model: Classifier,
    split: Split,
    threat: Threat,
    seed: int,
    attack: Attack,
    batch_size: int = BATCH,
) -> Images:
    """Adversarial images for a whole split.

    Random numbers belong to (seed, image), so the size of the batches changes nothing.

    Returns:
        float32 (N, C, H, W) on the device of the split.

    Raises:
        InvalidEvaluation: the attack left the ball or the box by more than 1e-6.
    """
    crafted = []
    for x, y, rng in _batches(split, seed, batch_size):
        candidate = attack(model, x, y, threat, rng)
        if not (excess := overstep(candidate, x, threat)) <= TOLERANCE:
            raise InvalidEvaluation(
                f"attack: an image lies {excess:g} outside the ball of {threat.eps:g} or the box "
                f"[{threat.low:g}, {threat.high:g}]; its results cannot count"
            )
        crafted.append(candidate)
    return torch.cat(crafted)


def search(
    model: Classifier,
    split: Split,
    threat: Threat,
    seed: int,
    nearest: Search,
    batch_size: int = BATCH,
) -> Nearest:
    """The nearest adversarial images for a whole split; as `craft`, but outside the ball too.

    Raises:
        InvalidEvaluation: a distance is not that of its image, or an image left the box.
    """
    found = []
    everywhere = threat.unbounded(tuple(split.images.shape[1:]))
    for x, y, rng in _batches(split, seed, batch_size):
        end = nearest(model, x, y, threat, rng)
        met = end.distance.isfinite()
        if not overstep(end.images, x, everywhere) <= TOLERANCE or not torch.allclose(
            threat.length(end.images - x)[met], end.distance[met], rtol=1e-4, atol=TOLERANCE
        ):
            raise InvalidEvaluation("attack: a search reports images that are not where it says")
        found.append(end)
    return Nearest(torch.cat([e.images for e in found]), torch.cat([e.distance for e in found]))


def _batches(
    split: Split, seed: int, batch_size: int
) -> Iterator[tuple[Images, Labels, ImageRandom]]:
    """Images in float, their labels, and the random streams of exactly these images."""
    for rows in torch.arange(len(split)).split(batch_size):
        part = split.subset(rows.to(split.images.device))
        yield as_float(part.images), part.labels, ImageRandom(seed, part.indices)


def overstep(candidate: Images, x: Images, threat: Threat) -> float:
    """The farthest that any image lies outside the ball or the box; infinite if one is NaN."""
    ball = (threat.length((candidate - x).double()) - threat.eps).amax()
    box = torch.maximum(threat.low - candidate, candidate - threat.high).amax()
    farthest = torch.maximum(ball, box.double()).clamp_min(0.0)
    return float(farthest.nan_to_num(nan=float("inf")))


def survives(
    model: Classifier,
    split: Split,
    threat: Threat,
    seed: int,
    attack: Attack,
    batch_size: int = BATCH,
) -> Tensor:
    """bool (N,): correct as it is and correct after the attack on this model."""
    candidates = craft(model, split, threat, seed, attack, batch_size)
    after = is_correct(predict(model, candidates, batch_size), split.labels)
    return after & is_correct(predict(model, split.images, batch_size), split.labels)


def survival(
    model: Classifier,
    split: Split,
    threat: Threat | None = None,
    seed: int = 0,
    *,
    steps: int = 20,
) -> Tensor:
    """The quick measurement between epochs: bool (N,), clean, or under one start of PGD.

    Each rank measures its blocks of the images, and all know of all.
    """
    mine = blocks(len(split), BATCH)
    if not mine:
        own = torch.zeros(0, dtype=torch.bool, device=split.labels.device)
    else:
        part = split if ranks.count() == 1 else split.subset(torch.cat(mine))
        if threat is None:
            own = is_correct(predict(model, part.images), part.labels)
        else:
            attack = partial(pgd_worst, steps=steps, restarts=1)
            own = survives(model, part, threat, seed, attack)
    return in_order(own, len(split), BATCH)


def accuracy(verdicts: Tensor) -> float:
    """The share of true verdicts, in [0, 1]."""
    return float(verdicts.double().mean())
