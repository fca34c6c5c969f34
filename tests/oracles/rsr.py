"""RSR in numpy: noisy weights, gradients through them, the lasso, and what a global cut keeps."""

from collections.abc import Mapping

import numpy as np


def noisy(weight: np.ndarray, alpha: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """w + alpha sigma eta, one alpha for each output channel."""
    sigma = np.sqrt(np.mean((weight - weight.mean()) ** 2))
    result = np.empty_like(weight)
    for channel in range(len(weight)):
        result[channel] = weight[channel] + alpha[channel] * sigma * eta[channel]
    return result


def alpha_gradient(weight: np.ndarray, eta: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """dL/dalpha (O,) out of dL/dw at the noisy weight; sigma is a constant."""
    sigma = np.sqrt(np.mean((weight - weight.mean()) ** 2))
    return np.array([float((o * sigma * e).sum()) for o, e in zip(outer, eta, strict=True)])


def lasso(weights: Mapping[str, np.ndarray]) -> float:
    return sum(float(np.abs(weight).sum()) for weight in weights.values())


def largest(weights: Mapping[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """Which of all weights together are the `keep` largest, without any floor for a layer."""
    ranked = sorted(
        ((-abs(value), name, index) for name, w in weights.items() for index, value in _all(w)),
        key=lambda entry: entry[0],
    )
    kept = {name: np.zeros(w.shape, dtype=bool) for name, w in weights.items()}
    for _, name, index in ranked[:keep]:
        kept[name][index] = True
    return kept


def _all(weight: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    return [(index, float(value)) for index, value in np.ndenumerate(weight)]
