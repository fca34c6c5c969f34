"""Masks at work: parametrisations that make a pruned weight exactly zero in every forward.

A masked network computes with `weight * mask` wherever it is called from, so nobody can attack or
measure the dense network by mistake. Masks change only in `refresh`, once per optimiser step: PGD
evaluates `forward` hundreds of times in between. Nothing of this reaches a file: `bake` moves the
effective weights into a fresh, plain network.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.masks import keep_top
from advprune.models import prunable
from advprune.types import Masks

_ORIGINAL = ".parametrizations.weight.original"


class Fixed(nn.Module):
    """A mask that never changes: weight * mask."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Scored(nn.Module):
    """A mask learned through scores: the `keep` largest |S| (HYDRA, Sehwag et al. 2020).

    The straight-through estimator passes the gradient of the mask to |S| unchanged, for kept and
    removed weights alike: dL/d|S| = theta * dL/d(theta * M).

    Args:
        weight: the frozen pretrained weight. Scores start in proportion to it, so that the first
            mask is the one of magnitude pruning.
        keep: how many weights of the layer stay.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, keep: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(scaled_scores(weight))
        self.register_buffer("mask", torch.zeros_like(weight, dtype=torch.bool))
        self.keep = keep
        self.refresh()

    def refresh(self) -> None:
        """Select the mask anew from the scores as they stand."""
        self.mask.copy_(keep_top(self.scores.detach().abs(), self.keep))

    def surrogate(self) -> Tensor:
        """What the gradient of the mask flows into; its value does not matter."""
        return self.scores.abs()

    def gain(self) -> Tensor:
        """The mask in value; its gradient flows into the surrogate."""
        surrogate = self.surrogate()
        # The bracket is zero in value and the identity in gradient.
        return self.mask + (surrogate - surrogate.detach())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain()


def scaled_scores(weight: Tensor) -> Tensor:
    """S = sqrt(6 / fan_in) * theta / max|theta| (HYDRA's scaled initialisation)."""
    fan_in = weight[0].numel()
    return math.sqrt(6.0 / fan_in) * weight.detach() / weight.detach().abs().max().clamp_min(1e-12)


def prunable_weights(net: nn.Module) -> dict[str, Tensor]:
    """The effective weight of every prunable layer, detached, by the name of the weight."""
    return {name: module.weight.detach() for name, module in prunable(net).items()}  # pyright: ignore


def freeze_layers(net: nn.Module) -> None:
    """Stop the weights and biases of prunable layers from learning; batch norm goes on."""
    for module in prunable(net).values():
        module.requires_grad_(False)


def attach(net: nn.Module, make: Callable[[str, Tensor], nn.Module]) -> None:
    """Put `make(name, weight)` before every prunable weight of the network."""
    for name, module in prunable(net).items():
        weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
        masking = make(name, weight.detach()).to(weight.device)
        parametrize.register_parametrization(module, "weight", masking)


def hold(net: nn.Module, masks: Masks) -> None:
    """Fix the masks: whatever trains from here on, removed weights stay zero."""
    attach(net, lambda name, _: Fixed(masks[name]))


def maskings(net: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(weight name, layer, parametrisation) of every masked weight, in the order of the network."""
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            stack: nn.ModuleList = module.parametrizations.weight  # pyright: ignore
            yield f"{name}.weight", module, stack[0]


@contextmanager
def bare(net: nn.Module) -> Iterator[None]:
    """The network without parametrisations for a while, to trace it; its parameters stay."""
    attached = [(layer, masking) for _, layer, masking in maskings(net)]
    for layer, _ in attached:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    try:
        yield
    finally:
        for layer, masking in attached:
            parametrize.register_parametrization(layer, "weight", masking)


def refresh(net: nn.Module) -> None:
    """Select every learned mask anew; after each optimiser step."""
    for module in net.modules():
        if isinstance(module, Scored):
            module.refresh()


def current_masks(net: nn.Module) -> Masks:
    """The masks in force, detached and on the CPU."""
    return {name: masking.mask.detach().cpu().clone() for name, _, masking in maskings(net)}  # pyright: ignore


def fix(net: nn.Module, masks: Masks) -> None:
    """Put other masks in force, in place: the optimiser keeps its parameters."""
    for name, _, masking in maskings(net):
        masking.get_buffer("mask").copy_(masks[name])


def detach(net: nn.Module) -> Masks:
    """The masks in force; the network is plain afterwards, with the weights that it had."""
    masks = current_masks(net)
    for _, layer, _ in list(maskings(net)):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return masks


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """The state as if nothing had been attached: effective weights under vanilla names."""
    effective = {name: layer.weight for name, layer, _ in maskings(net)}
    state: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        if key.endswith(_ORIGINAL):
            name = key.removesuffix(_ORIGINAL) + ".weight"
            state[name] = effective[name].detach()  # pyright: ignore
        elif ".parametrizations." not in key:
            state[key] = value
    return state


def bake(net: nn.Module, fresh: nn.Module) -> nn.Module:
    """Load the effective weights into `fresh`, a plain network of the same architecture.

    A deep copy would not do: it shares the class that the parametrisation generated, and removing
    the parametrisation from the copy deletes the weight of the original.
    """
    fresh.load_state_dict(plain_state(net), strict=True)
    return fresh
