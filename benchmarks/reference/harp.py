"""HARP's search as its authors run it (Zhao and Wressnegger 2023): masks in every forward.

Every convolution and linear layer sorts all of its scores whenever it is called, which is 12 times
a step with PGD-10 and 24 times with TRADES: an extra clean forward that nobody uses, the forwards
of the attack, those of the loss. Steps of the attack go backward through scores and rates too.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.types import Images, Labels

from .masks import sorted_mask
from .training import (
    Attack,
    attack_cross_entropy,
    attack_divergence,
    pgd_loss,
    trades_loss,
)


class _StraightThrough(torch.autograd.Function):
    """The mask of |scores| at a density; its gradient goes to both as if it were their sum."""

    @staticmethod
    def forward(ctx: Any, magnitudes: Tensor, density: Tensor) -> Tensor:
        size = magnitudes.numel()
        removed = int((1.0 - float(density)) * size)
        return sorted_mask(magnitudes, max(1, size - removed)).to(magnitudes.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0].sum()


class MaskedLayer(nn.Module):
    """A convolution or linear layer with frozen weights under scores and a density of its own.

    a = (1 - floor) sigmoid(r) + floor, and S starts as sqrt(6 / fan_in) theta / max |theta|.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, density: float, floor: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        weight = layer.weight.detach()
        fan_in = weight[0].numel()
        self.scores = nn.Parameter(math.sqrt(6.0 / fan_in) * weight / weight.abs().max())
        share = (density - floor) / (1.0 - floor)
        self.rate = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))).to(weight))
        self.floor = floor

    @property
    def size(self) -> int:
        return self.scores.numel()

    def density(self) -> Tensor:
        return (1.0 - self.floor) * torch.sigmoid(self.rate) + self.floor

    def mask(self) -> Tensor:
        return _StraightThrough.apply(self.scores.abs(), self.density())  # pyright: ignore

    def weight(self) -> Tensor:
        """What the layer computes with."""
        return self.layer.weight * self.mask()

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.weight(), layer.bias)
        return F.conv2d(
            x,
            self.weight(),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )


def mask_layers(net: nn.Module, densities: Mapping[str, float], floor: float) -> None:
    """Put a mask over each layer named in `densities`, in place.

    Args:
        densities: by the name of the layer, above the floor and below 1.
    """
    for name, density in densities.items():
        parent, _, child = name.rpartition(".")
        layer: Any = net.get_submodule(name)
        setattr(net.get_submodule(parent), child, MaskedLayer(layer, density, floor))


def masked_layers(net: nn.Module) -> Iterator[MaskedLayer]:
    return (module for module in net.modules() if isinstance(module, MaskedLayer))


def hardware_loss(net: nn.Module, target: float) -> Tensor:
    """L_hw = max(sum(n_l a_l) / (a_t sum(n_l)) - 1, 0)."""
    layers = list(masked_layers(net))
    kept = torch.stack([layer.size * layer.density() for layer in layers]).sum()
    return (kept / (target * sum(layer.size for layer in layers)) - 1.0).clamp_min(0.0)


def harp_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Images,
    labels: Labels,
    attack: Attack,
    *,
    target: float,
    gamma: float,
    trades: bool = False,
    beta: float = 6.0,
) -> None:
    """One step of the search, L_robust + gamma L_hw; the attack runs in eval mode."""
    net.train()
    net(images)  # as published: no one reads what it gives
    net.eval()
    if trades:
        adversarial = attack_divergence(net, images, attack)
    else:
        adversarial = attack_cross_entropy(net, images, labels, attack)
    net.train()
    optimiser.zero_grad()
    if trades:
        robust = trades_loss(net, images, adversarial, labels, beta)
    else:
        robust = pgd_loss(net, adversarial, labels)
    (robust + gamma * hardware_loss(net, target)).backward()
    optimiser.step()
