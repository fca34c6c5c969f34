"""TwinRep in numpy: one step of SGD on the factors of a weight, and what a global cut keeps."""

from collections.abc import Sequence

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
