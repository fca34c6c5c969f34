"""The arithmetic of DNR in plain numbers."""

import numpy as np


def shares(momenta: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> dict[str, float]:
    """A layer's part of the mean |momentum| of what is on."""
    means = {name: float(np.abs(m[masks[name]]).mean()) for name, m in momenta.items()}
    return {name: mean / sum(means.values()) for name, mean in means.items()}


def penalty(
    weights: dict[str, np.ndarray], z: dict[str, np.ndarray], u: dict[str, np.ndarray], rho: float
) -> float:
    """sum_l rho / 2 |W - Z + U|^2."""
    return sum(rho / 2 * float(((w - z[name] + u[name]) ** 2).sum()) for name, w in weights.items())


def aim(
    weight: np.ndarray, mask: np.ndarray, dual: np.ndarray, drop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Z and U out of W, U and how many the next rewiring drops."""
    moved = np.where(mask, weight + dual, 0.0)
    order = sorted(np.flatnonzero(mask), key=lambda i: abs(moved.ravel()[i]))
    z = moved.copy()
    for index in order[:drop]:
        z.ravel()[index] = 0.0
    return z, dual + weight - z
