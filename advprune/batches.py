"""Training images in batches: the order of an epoch, augmentation, one random stream per image."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advprune.data import ImageSet, Split, as_float, augment
from advprune.rank_rows import own_rows
from advprune.repro import ImageRandom, derive, generator
from advprune.spans import span
from advprune.types import Images, Labels
from advprune.whole_batch import Rows


@dataclass(frozen=True)
class Batch:
    """Images float32 (N, C, H, W), labels (N,), and one random stream per image.

    part: which rows of a larger batch these are; None where they are all of it.
    carried: what a replay of this batch leaves to the next, see `replays`.
    """

    images: Images
    labels: Labels
    random: ImageRandom
    part: Rows | None = None
    carried: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> Rows:
        return self.part or Rows(torch.arange(len(self.labels)), len(self.labels))

    @property
    def share(self) -> float:
        """Of the whole batch."""
        return len(self.labels) / self.rows.of

    def pieces(self, count: int) -> Iterator["Batch"]:
        """The same images in pieces of nearly equal size, each a part of the same whole."""
        if count == 1:
            yield self
            return
        for index, chosen in enumerate(torch.arange(len(self.labels)).tensor_split(count)):
            there = chosen.to(self.labels.device)
            yield Batch(
                self.images[there],
                self.labels[there],
                self.random.subset(there),
                Rows(self.rows.positions[chosen], self.rows.of),
                self.carried.setdefault(f"piece {index} of {count}", {}),
            )


def batches(
    images: ImageSet,
    seed: int,
    epoch: int,
    count: int,
    *,
    augmented: bool = True,
    first: int = 0,
    stride: int = 1,
    pieces: int | None = None,
) -> Generator[Batch]:
    """The training images in `count` batches of nearly equal size, in the order of seed and epoch.

    Extra images, where the set has them, join every batch one for one: another part of them in
    each epoch, and again from the beginning where they are fewer than the training images.

    Args:
        augmented: crop and flip as the data set allows; else the images as they are.
        first, stride: the batch to begin with, counted from zero, and from one to the next.
        pieces: give this rank's rows of each batch, of which there are as many at least; whole
            batches where None.

    Raises:
        Refused: there are fewer rows than pieces of all ranks.
    """
    order = torch.randperm(len(images.train), generator=generator(seed, "order", epoch))
    own = order.tensor_split(count)
    extra = _extra(images, seed, epoch, own)
    seen = derive(seed, "images", epoch)
    coming = [
        (chosen, beside, _rows(len(chosen), pieces))
        for chosen, beside in zip(own[first::stride], extra[first::stride], strict=True)
    ]
    loaded = images.train.load(
        [chosen[rows] for chosen, _, rows in coming], seen if augmented else None
    )
    for chosen, beside, rows in coming:
        with span("data"):
            part, whole = next(loaded), Rows(rows, len(chosen))
            if images.extra is not None:
                part = _join(part, _take(images.extra, beside[rows]))
                whole = Rows(torch.cat([rows, rows + len(chosen)]), 2 * len(chosen))
            random = ImageRandom(seen, part.indices)
            floats = as_float(part.images)
            if augmented:
                floats = augment(floats, random.fork("augment"), images.augment)
        yield Batch(floats, part.labels, random.fork("attack"), whole)


def _rows(count: int, pieces: int | None) -> Tensor:
    """Positions in a batch of so many images: this rank's, or all."""
    rows = torch.arange(count)
    return rows if pieces is None else own_rows(rows, pieces)


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
