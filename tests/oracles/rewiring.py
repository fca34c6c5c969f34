"""Dropping and growing weights in numpy, by sorting lists."""

import numpy as np


def drop(weight: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """The mask without the `count` smallest magnitudes that are on; the last of equals first."""
    left = mask.copy().ravel()
    on = [(abs(weight.ravel()[i]), -i) for i in np.flatnonzero(mask)]
    for _, index in sorted(on)[:count]:
        left[-index] = False
    return left.reshape(mask.shape)


def grow(mask: np.ndarray, scores: np.ndarray, count: int, barred: np.ndarray) -> np.ndarray:
    """The mask with the `count` largest scores that are off and not barred; the first of equals."""
    more = mask.copy().ravel()
    free = [(-scores.ravel()[i], i) for i in np.flatnonzero(~mask & ~barred)]
    for _, index in sorted(free)[:count]:
        more[index] = True
    return more.reshape(mask.shape)
