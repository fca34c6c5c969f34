"""Bayesian connectivity sampling in numpy: what a step does to the weights of one layer."""

import numpy as np


def step(
    theta: np.ndarray, on: np.ndarray, slope: np.ndarray, noise: np.ndarray, lr: float
) -> tuple[np.ndarray, np.ndarray]:
    """theta and what is on after plain SGD and noise, before anything is born.

    Args:
        noise: standard normal, for every weight.
    """
    moved = theta.copy()
    for index in np.ndindex(theta.shape):
        if on[index]:
            moved[index] = theta[index] - lr * slope[index] + lr * 1e-6 * noise[index]
    alive = on & (moved > 0)
    return np.where(alive, moved, 0.0), alive
