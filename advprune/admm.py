"""Training that pulls the weights onto the sparse set, by the method of multipliers.

    W  <- descend  loss(W) + sum_l rho / 2 |W_l - Z_l + U_l|^2      every step
    Z  <- Proj(W + U)                                                now and then
    U  <- U + W - Z

from Z = Proj(W), U = 0, with rho growing before each such update. Proj keeps, in each layer or
group of channels, as many of the units as are to stay: those of largest L2 norm. At the end the
same rule cuts W itself. U is a constant of the descent.

All of it lives in the state of a method: `rho`, how many `updates` there were, and for each weight
`Z/NAME` and `U/NAME`; for each layer or group, `kept/NAME` units.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advprune.method import State
from advprune.models import prunable
from advprune.types import Masks
from advprune.units import Units

Weights = Mapping[str, Tensor]

# rho * lr * steps of R-ADMM's released CIFAR-10 run: 0.001 * 0.01 * 200 epochs of 391 steps.
PULL = 0.782


def begin(units: Units, weights: Weights, kept: Mapping[str, int], rho: float) -> State:
    """The state before the first step; `kept` are the counts of `units` that will stay."""
    state = {
        "rho": torch.tensor(rho),
        "updates": torch.tensor(0),
        **{f"kept/{name}": torch.tensor(count) for name, count in kept.items()},
    }
    projected = _project(units, weights, state)
    for name, weight in weights.items():
        state[f"Z/{name}"] = projected[name]
        state[f"U/{name}"] = torch.zeros_like(weight)
    return state


def penalty(net: nn.Module, state: State, copies: float = 1.0) -> Tensor:
    """`distance` of the weights that the layers compute with, with their gradients."""
    weights = {name: layer.weight for name, layer in prunable(net).items()}
    return distance(weights, state, copies)


def distance(weights: Weights, state: State, copies: float = 1.0) -> Tensor:
    """copies * sum_l rho / 2 |W_l - Z_l + U_l|^2."""
    squares = [
        (weight - state[f"Z/{name}"] + state[f"U/{name}"]).square().sum()
        for name, weight in weights.items()
    ]
    return 0.5 * float(state["rho"]) * copies * torch.stack(squares).sum()


def due(state: State, step: int, steps: int, updates: int) -> bool:
    """Whether an update is owed: where the share of the run that is done passes k / (updates + 1).

    Args:
        step: how many of the `steps` of the run are done.
        updates: how many there are in all, evenly spaced; none at the end.
    """
    return min(updates, step * (updates + 1) // steps) > int(state["updates"])


@torch.no_grad()
def update(units: Units, weights: Weights, state: State, growth: float) -> None:
    """rho <- growth rho, Z <- Proj(W + U), U <- U + W - Z."""
    state["updates"] += 1
    state["rho"] *= growth
    moved = {name: weight + state[f"U/{name}"] for name, weight in weights.items()}
    projected = _project(units, moved, state)
    for name, weight in weights.items():
        state[f"Z/{name}"].copy_(projected[name])
        state[f"U/{name}"].add_(weight - projected[name])


def select(units: Units, weights: Weights, state: State) -> Masks:
    """The masks of the units of largest norm, as many as are to stay."""
    counts = {name: int(state[f"kept/{name}"]) for name in units.sizes}
    return units.select(units.norms(weights), counts)


def _project(units: Units, weights: Weights, state: State) -> dict[str, Tensor]:
    masks = select(units, weights, state)
    return {name: weight * masks[name].to(weight.device) for name, weight in weights.items()}
