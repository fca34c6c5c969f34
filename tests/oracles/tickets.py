"""Tickets in numpy: what a cut by magnitude keeps, and when a history of masks is stable."""

from collections.abc import Mapping, Sequence

import numpy as np

Arrays = Mapping[str, np.ndarray]


def in_means(weights: Arrays) -> dict[str, np.ndarray]:
    """Sizes over the mean size of the layer."""
    return {name: abs(w.astype(float)) / abs(w.astype(float)).mean() for name, w in weights.items()}


def stable_after(history: Sequence[np.ndarray], window: int, threshold: float) -> int | None:
    """The first epoch, from one, whose mask is within `threshold` of the `window - 1` before it."""
    for epoch in range(window, len(history) + 1):
        last = history[epoch - 1]
        near = [
            sum(int(a != b) for a, b in zip(last, mask, strict=True)) <= threshold * len(last)
            for mask in history[epoch - window : epoch - 1]
        ]
        if all(near):
            return epoch
    return None


def lottery_shares(rounds: int, share: float) -> float:
    """What is left of a layer that loses this share of what it has, so many times."""
    left = 1.0
    for _ in range(rounds):
        left -= share * left
    return left
