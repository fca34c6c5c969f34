"""Images that occur more than once, counted by the digests of their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Duplicates:
    """What is there twice.

    Attributes:
        in_train, in_test: images equal to an earlier one of the same part.
        leaked: test images that are among the images to train on, too.
        contradicting: images whose pixels have another label elsewhere.
        pairs: positions (test image, the same to train on) of the first few that leaked.
        disputed: positions of the first two that contradict each other; empty where none do.
    """

    in_train: int
    in_test: int
    leaked: int
    contradicting: int
    pairs: tuple[tuple[int, int], ...]
    disputed: tuple[int, ...]


def duplicates(
    keys: NDArray[np.uint8], labels: NDArray[np.int64], is_test: Sequence[bool] | NDArray[np.bool_]
) -> Duplicates:
    """Compare all images with all others.

    Args:
        keys: (N, bytes), the digest of each image.
        labels: (N,)
        is_test: (N,), whether it is measured with rather than trained on.
    """
    held_out = np.asarray(is_test, dtype=bool)
    whole = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}").ravel()
    _, group = np.unique(whole, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    trained, tested = (np.bincount(group[part], minlength=count) for part in (~held_out, held_out))
    leaked = np.flatnonzero(held_out & (trained[group] > 0))
    twin = np.full(count, -1)
    twin[group[~held_out][::-1]] = np.flatnonzero(~held_out)[::-1]  # the first of each group

    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    contradicting = np.flatnonzero((lowest < highest)[group])
    disputed: tuple[int, ...] = ()
    if len(contradicting):
        first = int(contradicting[0])
        others = np.flatnonzero((group == group[first]) & (labels != labels[first]))
        disputed = (first, int(others[0]))
    return Duplicates(
        in_train=_beyond_the_first(trained),
        in_test=_beyond_the_first(tested),
        leaked=len(leaked),
        contradicting=len(contradicting),
        pairs=tuple((int(i), int(twin[group[i]])) for i in leaked[:3]),
        disputed=disputed,
    )


def _beyond_the_first(counts: NDArray[np.int64]) -> int:
    return int(np.maximum(counts - 1, 0).sum())
