"""Networks that only look robust, each by a trick of its own, and honest ones beside them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from attack_nets import digit_net
from torch import Tensor, nn

from advprune.types import Threat

THREAT = Threat(0.1)


class Act(nn.Module):
    """A function of tensors as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _inside(function: Callable[[Tensor], Tensor], threat: Threat | None = None) -> nn.Module:
    """A digit net with something between its layers."""
    net = digit_net(threat)
    return nn.Sequential(net[0], net[1], net[2], Act(function), net[3])


def _before(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(Act(function), digit_net())


def _after(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(digit_net(), Act(function))


def _innermost(x: Tensor) -> Tensor:
    """Follows a gradient of its own towards what it would answer anyway."""
    with torch.enable_grad():
        inner = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(digit_net()(inner).amax(dim=1).sum(), inner)
    return x + 0.02 * slope.sign()


def _hard(x: Tensor) -> Tensor:
    return (x > 0.5).float() + 0.0 * x


MASKED: dict[str, Callable[[], nn.Module]] = {
    "scaled logits": lambda: _after(lambda z: 300 * z),
    "rounded activations": lambda: _inside(lambda x: (8 * x).round() / 8),
    "hard thresholds": lambda: _inside(_hard),
    "stochastic layer": lambda: _inside(lambda x: x + 0.2 * torch.randn_like(x)),
    "input quantisation": lambda: _before(lambda x: (4 * x).round() / 4),
    "saturating softmax": lambda: _after(lambda z: (50 * z).softmax(dim=1)),
    "activation without gradient": lambda: _inside(_NoGradient.apply),  # pyright: ignore
    "preprocessing without gradient": lambda: _before(lambda x: (16 * x).floor() / 16),
    "reversed gradient": lambda: _before(_Reversed.apply),  # pyright: ignore
    "shattered gradient": lambda: _before(lambda x: x + 0.02 * torch.sin(2000 * x)),
    "inner optimisation": lambda: _before(_innermost),
}

SOUND: dict[str, Callable[[], nn.Module]] = {
    "hardened": lambda: digit_net(THREAT),
    "plain": lambda: digit_net(),
    "hardened for more": lambda: digit_net(Threat(0.2)),
    "rounded activations, straight through": lambda: _inside(_Through.apply, THREAT),  # pyright: ignore
    "smaller logits": lambda: _after(lambda z: 0.1 * z),
}


# Factories for `advprune attack`. Copies: it may put what it is given into another mode.


def probabilities() -> nn.Module:
    return deepcopy(MASKED["saturating softmax"]())


def restless() -> nn.Module:
    return deepcopy(MASKED["stochastic layer"]())


def reversed_gradient() -> nn.Module:
    return deepcopy(MASKED["reversed gradient"]())


def hardened() -> nn.Module:
    return deepcopy(SOUND["hardened"]())


def for_colours() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 10))
