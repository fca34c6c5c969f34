"""What of a network can be pruned, layer by layer, and why the rest cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from advprune.coupling import Examined, examine
from advprune.errors import Incompatible
from advprune.models import prunable
from advprune.semi_structured import in_fours
from advprune.stats import layer_macs
from advprune.surgery import depthwise

Granularity = Literal["weight", "filter", "channel", "2:4"]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Row:
    """One layer that has numbers of its own.

    Attributes:
        kind: of module.
        shape: of its weight, or of its first parameter.
        weights: how many it has; of a layer that is not pruned, all its parameters.
        macs: multiply-accumulates for one image, of convolutions and linear layers.
        prunable: whether the granularity that was asked about can remove anything here.
        channels: the layer whose outputs its own go with where they can be removed; else None.
        why: its outputs cannot be removed; "" where they can, or where it makes none.
        norm: whether it normalises: then it goes with its channels.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int
    prunable: bool
    channels: str | None
    why: str
    norm: bool


@dataclass(frozen=True)
class Prunability:
    """The layers, and how many channels can be removed in how many groups."""

    rows: tuple[Row, ...]
    channels: int
    groups: int


def inspect(
    net: nn.Module, shape: tuple[int, int, int], granularity: Granularity = "weight"
) -> Prunability:
    """Every layer of a plain network, in its order.

    Args:
        shape: (C, H, W) of one image.
    """
    layers = {name.removesuffix(".weight"): layer for name, layer in prunable(net).items()}
    macs = layer_macs(net, shape)
    groups, kept = _examined(net, shape, layers)
    heads = {slot.layer: g.makers[0].layer for g in groups for slot in g.makers}
    touched = {slot.layer for group in groups for slot in (*group.makers, *group.readers)}
    rows = []
    for name, module in _with_numbers(net):
        layer = layers.get(name)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        first = next(module.parameters(recurse=False))
        rows.append(
            Row(
                name=name,
                kind=_kind(module),
                shape=tuple(first.shape if layer is None else layer.weight.shape),
                weights=own if layer is None else layer.weight.numel(),
                macs=macs.get(f"{name}.weight", 0),
                prunable=layer is not None and _can(layer, name in touched, granularity),
                channels=heads.get(name),
                why=kept.get(name, ""),
                norm=isinstance(module, _NORMS),
            )
        )
    return Prunability(tuple(rows), sum(group.width for group in groups), len(groups))


def _examined(net: nn.Module, shape: tuple[int, int, int], layers: dict) -> Examined:
    """Where the graph cannot be traced, that is the reason for every layer."""
    try:
        return examine(net, shape)
    except Incompatible as error:
        return Examined([], dict.fromkeys(layers, str(error).partition(": ")[2]))


def _can(layer: nn.Conv2d | nn.Linear, touched: bool, granularity: Granularity) -> bool:
    if granularity == "2:4":
        return in_fours(layer)
    return touched or granularity == "weight"


def _with_numbers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in net.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "Conv2d, depthwise" if depthwise(module) else f"Conv2d, {module.groups} groups"
    return type(module).__name__
