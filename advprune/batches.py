"""Training images in batches: the order of an epoch, augmentation, one random stream per image."""

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advprune.data import ImageSet, Split, as_float, augment
from advprune.repro import ImageRandom, derive, generator
from advprune.spans import span
from advprune.types import Images, Labels


@dataclass(frozen=True)
class Batch:
    """Images float32 (N, C, H, W), labels (N,), and one random stream per image.

    carried: what a replay of this batch leaves to the next, see `replays`.
    """

    images: Images
    labels: Labels
    random: ImageRandom
    carried: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


def batches(
    images: ImageSet, seed: int, epoch: int, count: int, *, augmented: bool = True, first: int = 0
) -> Generator[Batch]:
    """The training images in `count` batches of nearly equal size, in the order of seed and epoch.

    Extra images, where the set has them, join every batch one for one: another part of them in
    each epoch, and again from the beginning where they are fewer than the training images.

    Args:
        augmented: crop and flip as the data set allows; else the images as they are.
        first: the batch to begin with, counted from zero.
    """
    order = torch.randperm(len(images.train), generator=generator(seed, "order", epoch))
    own = order.tensor_split(count)
    extra = _extra(images, seed, epoch, own)
    seen = derive(seed, "images", epoch)
    loaded = images.train.load(own[first:], seen if augmented else None)
    for beside in extra[first:]:
        with span("data"):
            part = next(loaded)
            if images.extra is not None:
                part = _join(part, _take(images.extra, beside))
            random = ImageRandom(seen, part.indices)
            floats = as_float(part.images)
            if augmented:
                floats = augment(floats, random.fork("augment"), images.augment)
        yield Batch(floats, part.labels, random.fork("attack"))


def _extra(images: ImageSet, seed: int, epoch: int, own: tuple[Tensor, ...]) -> list[Tensor]:
    """Positions of the extra images beside each batch; empty where there are none."""
    if images.extra is None:
        return [chosen[:0] for chosen in own]
    needed = sum(len(chosen) for chosen in own)
    draw = generator(seed, "extra", epoch)
    rounds = -(-needed // len(images.extra))
    order = torch.cat([torch.randperm(len(images.extra), generator=draw) for _ in range(rounds)])
    return list(order[:needed].split([len(chosen) for chosen in own]))


def _take(split: Split, positions: Tensor) -> Split:
    chosen = positions.to(split.images.device)
    return Split(split.images[chosen], split.labels[chosen], split.indices[chosen])


def _join(first: Split, second: Split) -> Split:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Split(*(torch.cat(pair) for pair in pairs))
