"""TwinRep in numpy: one step of SGD on the factors of a weight, and what a global cut keeps."""

from collections.abc import Mapping, Sequence

import numpy as np


def step(
    factors: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    lr: float,
    decay: float,
) -> list[np.ndarray]:
    """Plain SGD with decay, without momentum: f - lr (dL/df + decay f)."""
    return [f - lr * (g + decay * f) for f, g in zip(factors, gradients, strict=True)]


def twin_gradients(u: np.ndarray, v: np.ndarray, gradient: np.ndarray) -> list[np.ndarray]:
    """dL/du and dL/dv out of dL/dw, w = u v."""
    return [v * gradient, u * gradient]


def mixed_gradients(v: np.ndarray, mix: np.ndarray, gradient: np.ndarray) -> list[np.ndarray]:
    """dL/dV and dL/dA out of dL/dW, W = A V with the filters as rows."""
    rows, outer = v.reshape(len(v), -1), gradient.reshape(len(v), -1)
    return [(mix.T @ outer).reshape(v.shape), outer @ rows.T]


def largest(scores: Mapping[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """Which of all scores together are the `keep` largest, without any floor for a layer."""
    ranked = sorted(
        ((value, name, index) for name, s in scores.items() for index, value in np.ndenumerate(s)),
        key=lambda entry: -entry[0],
    )
    kept = {name: np.zeros(s.shape, dtype=bool) for name, s in scores.items()}
    for _, name, index in ranked[:keep]:
        kept[name][index] = True
    return kept
