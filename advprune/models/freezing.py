"""Layers that keep their weights, and batch norms their statistics, whatever is trained or pruned.

They are found by name when a run begins, carried by `Architecture`, and marked by `build`: what
learns, what is pruned, and what `train()` moves are read off the mark.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from advprune.errors import BadData, Refused
from advprune.frozen import frozen

STEM = "stem"
_NETWORK = "network."
_MARK = "keeps_its_weights"
_NEAREST = 3
_Norm = nn.modules.batchnorm._NormBase


def is_frozen(module: nn.Module) -> bool:
    return vars(module).get(_MARK, False)


def freeze(net: nn.Module, names: Iterable[str]) -> None:
    """Mark these layers, in place; copies are marked as well.

    Raises:
        BadData: there is no such layer.
    """
    layers = dict(net.named_modules())
    for name in names:
        if name not in layers:
            raise BadData(f"architecture: frozen is {name!r}, which the network does not have")
        module = layers[name]
        vars(module)[_MARK] = True
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, _Norm):
            vars(module)["train"] = MethodType(_stay, module)
            module.eval()


def check_patterns(net: nn.Module, patterns: Iterable[str]) -> None:
    """Raises Refused as `layers_to_freeze` does, as far as that can be told without images."""
    patterns = tuple(patterns)
    named = {name for pattern in patterns for name in _matching(net, pattern)}
    _leave_some(_layers(net), named, patterns)


def layers_to_freeze(
    net: nn.Module, shape: tuple[int, int, int], patterns: Iterable[str]
) -> tuple[str, ...]:
    """The layers that the patterns name, norms that take their outputs, and who shares a weight.

    Args:
        shape: (C, H, W) of one image.
        patterns: globs over names as `advprune models NAME` shows them. `stem`, where no layer has
            that name, is the first layer that reads the images.

    Raises:
        Refused: a pattern matches nothing, or nothing would be left to prune.
    """
    patterns = tuple(patterns)
    layers = _layers(net)
    makers, norms = _met(net, shape)
    chosen = {n for pattern in patterns for n in _matching(net, pattern) or makers[:1]}
    kept = {id(p) for name in chosen for p in layers[name].parameters(recurse=False)}
    chosen |= {
        name
        for name, layer in layers.items()
        if any(id(parameter) in kept for parameter in layer.parameters(recurse=False))
    }
    chosen |= {norm for norm, maker in norms.items() if maker in chosen}
    _leave_some(layers, chosen, patterns)
    return tuple(name for name in layers if name in chosen)


def _leave_some(
    layers: Mapping[str, nn.Module], chosen: Collection[str], patterns: Iterable[str]
) -> None:
    """Raises Refused where nothing would be left to prune."""
    weighted = {n for n, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
    if weighted.issubset(chosen):
        raise Refused(
            f"--freeze {' '.join(patterns)}: freezes all {len(weighted)} layers that can be "
            "pruned; freeze fewer"
        )


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `train` does to a frozen norm."""
    return nn.Module.train(module, False)


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """All that have numbers of their own."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _Norm) or next(module.parameters(recurse=False), None) is not None
    }


def _matching(net: nn.Module, pattern: str) -> list[str]:
    """Names of layers; none for the stem."""
    layers = {name: name.removeprefix(_NETWORK) for name in _layers(net)}
    found = [n for n, short in layers.items() if any(fnmatchcase(x, pattern) for x in (n, short))]
    if not found and pattern != STEM:
        near = difflib.get_close_matches(pattern, layers.values(), n=_NEAREST, cutoff=0.0)
        raise Refused(
            f"--freeze {pattern!r}: matches no layer; nearest: {', '.join(near)}; "
            "`advprune models NAME` lists them, and stem is the first"
        )
    return found


def _met(net: nn.Module, shape: tuple[int, int, int]) -> tuple[list[str], dict[str, str]]:
    """Layers but norms, in the order in which an image meets them; norm -> the layer before it."""
    order: list[str] = []
    follows: dict[str, str] = {}
    # Tensors are kept, so that none is freed and its identity given to another; one that was
    # changed in place since is no longer what the layer made.
    made: dict[int, tuple[str, Tensor, int]] = {}

    def hook(name: str, layer: nn.Module) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if not isinstance(layer, _Norm):
                order.append(name)
                if isinstance(output, Tensor):
                    made[id(output)] = name, output, output._version
            elif inputs and id(inputs[0]) in made:
                maker, tensor, version = made[id(inputs[0])]
                if tensor._version == version:
                    follows[name] = maker

        return see

    handles = [m.register_forward_hook(hook(name, m)) for name, m in _layers(net).items()]
    try:
        with frozen(net), torch.no_grad():
            net(torch.zeros(1, *shape, device=next(net.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return order, follows
