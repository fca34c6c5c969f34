"""nHSIC in float64 numpy, pair by pair, with the one-sided centring of the released code."""

import numpy as np


def gaussian(values: np.ndarray, sigma: float = 5.0) -> np.ndarray:
    flat = values.reshape(len(values), -1).astype(np.float64)
    kernel = np.empty((len(flat), len(flat)))
    for i, first in enumerate(flat):
        for j, second in enumerate(flat):
            kernel[i, j] = np.exp(-((first - second) ** 2).sum() / (2 * sigma**2 * flat.shape[1]))
    return kernel


def of_labels(labels: np.ndarray) -> np.ndarray:
    return (labels[:, None] == labels[None, :]).astype(np.float64)


def nhsic(kernel: np.ndarray, other: np.ndarray) -> float:
    """trace(A (A + e N I)^-1 B (B + e N I)^-1) with A = K H and B = L H."""
    count = len(kernel)
    centring = np.eye(count) - np.ones((count, count)) / count
    ridge = 1e-5 * count * np.eye(count)
    first, second = kernel @ centring, other @ centring
    return float(
        np.trace(first @ np.linalg.inv(first + ridge) @ second @ np.linalg.inv(second + ridge))
    )
