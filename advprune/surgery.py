"""Channels cut out of layers: smaller tensors, the same modules, the same names.

A layer's widths are (outputs, inputs): of a convolution or linear layer; a batch norm, an instance
norm and a depthwise convolution have as many of one as of the other. Networks of given widths are
built again without knowing which channels were cut (`resize`), then their weights are loaded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advprune.errors import BadData

Widths = dict[str, tuple[int, int]]
# Batch norms and instance norms.
_Sized = nn.Conv2d | nn.Linear | nn.modules.batchnorm._NormBase


def depthwise(layer: nn.Module) -> bool:
    """Whether each output channel is made of the input channel of the same number, alone."""
    if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
        return False
    return layer.groups == layer.in_channels == layer.out_channels


def sizeable(layer: nn.Module) -> bool:
    """Whether single channels can be cut out: not out of grouped convolutions, but depthwise."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or depthwise(layer)
    return isinstance(layer, _Sized)


def widths(net: nn.Module) -> Widths:
    """(outputs, inputs) of every convolution, linear layer and norm of channels, by its name."""
    return {name: _size(layer) for name, layer in net.named_modules() if isinstance(layer, _Sized)}


@torch.no_grad()
def cut(layer: nn.Module, outputs: Tensor, inputs: Tensor) -> None:
    """Keep these positions of a layer's outputs and of its inputs, in place.

    Args:
        layer: a layer of which `sizeable` holds.
        outputs, inputs: int64, ascending positions that stay; for a norm or a depthwise convolution
            `inputs` is not looked at.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        weight = layer.weight.index_select(0, outputs)
        if not depthwise(layer):
            weight = weight.index_select(1, inputs)
        _replace(layer, "weight", weight)
        if layer.bias is not None:
            _replace(layer, "bias", layer.bias.index_select(0, outputs))
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, name) is not None:
                _replace(layer, name, getattr(layer, name).index_select(0, outputs))
    _declare(layer, len(outputs), len(inputs))


def resize(net: nn.Module, wanted: Mapping[str, tuple[int, int]]) -> None:
    """Give layers these widths, keeping their first channels.

    Raises:
        BadData: there is no such layer, or it cannot have these widths.
    """
    layers = dict(net.named_modules())
    for name, (outputs, inputs) in wanted.items():
        layer = layers.get(name)
        if not isinstance(layer, _Sized) or not sizeable(layer):
            raise BadData(f"architecture: widths of {name!r}, which is no layer that has them")
        most = _size(layer)
        if not (1 <= outputs <= most[0] and 1 <= inputs <= most[1]):
            raise BadData(
                f"architecture: widths of {name!r} must lie between 1 and {most}, "
                f"got {(outputs, inputs)}"
            )
        one_to_one = depthwise(layer) or not isinstance(layer, nn.Conv2d | nn.Linear)
        if one_to_one and outputs != inputs:
            raise BadData(
                f"architecture: widths of {name!r} must be equal, got {(outputs, inputs)}; "
                "write the checkpoint again"
            )
        cut(layer, torch.arange(outputs), torch.arange(inputs))


def _size(layer: _Sized) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.num_features, layer.num_features


def _declare(layer: nn.Module, outputs: int, inputs: int) -> None:
    if isinstance(layer, nn.Conv2d):
        if depthwise(layer):
            inputs, layer.groups = outputs, outputs
        layer.out_channels, layer.in_channels = outputs, inputs
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.num_features = outputs  # pyright: ignore[reportArgumentType]


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(value.clone(), requires_grad=old.requires_grad))
    else:
        setattr(layer, name, value.clone())
