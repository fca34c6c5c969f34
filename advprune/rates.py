"""Layer densities as sigmoids of learned rates: the map, its inverse, masks that follow them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advprune.allocate import distribute
from advprune.channel_masking import learned
from advprune.cost import Cost, of_sizes
from advprune.masking import Scored
from advprune.masks import kept_count

DENSEST = 0.99  # density one would have an infinite rate


def density_of(rate: Tensor, floor: float) -> Tensor:
    """a = (1 - floor) sigmoid(r) + floor, in (floor, 1) (HARP)."""
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


def shift_to_budget(rates: Tensor, floor: float, cost: Cost, budget: float) -> float:
    """The shift c with C(a(r + c)) = budget, by bisection.

    Args:
        rates: (G,), in the order of the cost's names.
        budget: a relative cost in (0, 1).

    Raises:
        ValueError: the budget lies outside what rates can express.
    """
    r = rates.detach().cpu().double()

    def spent(shift: float) -> float:
        return float(cost(density_of(r + shift, floor)))

    low, high = -60.0, 60.0
    if not spent(low) <= budget <= spent(high):
        raise ValueError(f"rates: a budget of {budget:g} is out of the rates' reach")
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    return 0.5 * (low + high)


class Rated(Scored):
    """Scores plus a learned density; the gradient of the mask flows into both."""

    def __init__(self, weight: Tensor, keep: int, density: float, floor: float) -> None:
        super().__init__(weight, keep)
        self.floor = floor
        self.rate = nn.Parameter(torch.tensor(rate_of(density, floor)))

    def density(self) -> Tensor:
        return density_of(self.rate, self.floor)

    def surrogate(self) -> Tensor:
        # Broadcast over the mask, so the gradient of the density is the sum over the layer.
        return super().surrogate() + self.density()


def rated(net: nn.Module) -> dict[str, Rated]:
    """The layers, or groups of channels, with learned densities, by name."""
    return {name: mask for name, mask in learned(net).items() if isinstance(mask, Rated)}


def sizes_of(layers: Mapping[str, Rated]) -> dict[str, int]:
    return {name: masking.mask.numel() for name, masking in layers.items()}


def cost_of(layers: Mapping[str, Rated], state: Mapping[str, Tensor]) -> Cost:
    """What a budget counts: what `Cost.tensors` left in the state, or else the layers' weights."""
    if "share" in state:
        return Cost(tuple(layers), state["share"], state["outputs"], state["inputs"])
    return of_sizes(sizes_of(layers))


def overrun(layers: Mapping[str, Rated], target: float, cost: Cost) -> Tensor:
    """L_hw = max(C(a) / C(a_t) - 1, 0), on densities, not counts.

    With the share of weights for C it is max(sum(n_l a_l) / (a_t sum n_l) - 1, 0) (HARP).
    """
    densities = torch.stack([masking.density() for masking in layers.values()])
    return (cost(densities) / cost.uniform(target) - 1.0).clamp_min(0.0)


@torch.no_grad()
def project(
    layers: Mapping[str, Rated], density: float, cost: Cost, *, only_down: bool = False
) -> None:
    """Shift all rates alike, so that together they cost what this density everywhere would.

    Args:
        only_down: leave rates that are below it already.
    """
    rates = torch.stack([masking.rate for masking in layers.values()])
    floor = next(iter(layers.values())).floor
    shift = shift_to_budget(rates, floor, cost, cost.uniform(density))
    if shift < 0.0 or not only_down:
        for masking in layers.values():
            masking.rate.add_(shift)


@torch.no_grad()
def follow(layers: Mapping[str, Rated]) -> None:
    """Keep in every layer what its density stands for, and select it anew."""
    # Together, so that a GPU is waited for once a step.
    densities = torch.stack([masking.density() for masking in layers.values()]).tolist()
    for masking, density in zip(layers.values(), densities, strict=True):
        masking.keep = max(1, kept_count(masking.mask.numel(), 1.0 - density))
        masking.refresh()


@torch.no_grad()
def land(layers: Mapping[str, Rated], sparsity: float) -> None:
    """Shift the rates onto the target, share the remainder out, and select exactly that many."""
    sizes = sizes_of(layers)
    project(layers, 1.0 - sparsity, of_sizes(sizes))
    wanted = {name: sizes[name] * float(layers[name].density()) for name in sizes}
    kept = distribute(wanted, sizes, kept_count(sum(sizes.values()), sparsity))
    for name, masking in layers.items():
        masking.keep = kept[name]
        masking.refresh()
