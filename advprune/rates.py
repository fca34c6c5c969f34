"""Layer densities as sigmoids of learned rates: the map, its inverse, the shift to a budget."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

DENSEST = 0.99  # density one would have an infinite rate


def density_of(rate: Tensor, floor: float) -> Tensor:
    """a = (1 - floor) sigmoid(r) + floor, in (floor, 1) (HARP, section 3.2)."""
    return (1.0 - floor) * torch.sigmoid(rate) + floor


def rate_of(density: float, floor: float) -> float:
    """The rate whose density this is, at most `DENSEST`.

    Raises:
        ValueError: the density does not exceed the floor.
    """
    density = min(density, DENSEST)
    if not floor < density:
        raise ValueError(f"rates: density {density:g} must exceed the floor {floor:g}")
    share = (density - floor) / (1.0 - floor)
    return math.log(share / (1.0 - share))


def shift_to_budget(
    rates: Mapping[str, float], sizes: Mapping[str, int], floor: float, budget: float
) -> float:
    """The shift c with sum n_l a(r_l + c) = budget, by bisection.

    Raises:
        ValueError: the budget lies outside what rates can express.
    """
    r = torch.tensor(list(rates.values()), dtype=torch.float64)
    n = torch.tensor(list(sizes.values()), dtype=torch.float64)

    def spent(shift: float) -> float:
        return float((n * density_of(r + shift, floor)).sum())

    low, high = -60.0, 60.0
    if not spent(low) <= budget <= spent(high):
        raise ValueError(f"rates: a budget of {budget:g} weights is out of the rates' reach")
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    return 0.5 * (low + high)
