"""The project's own networks by name: a decorated function is registered under its own name."""

import inspect
from collections.abc import Callable

from torch import nn

Factory = Callable[[int, int], nn.Module]

_FACTORIES: dict[str, Factory] = {}


def register(factory: Factory) -> Factory:
    """Register `factory(classes, channels)`; the first line of its docstring describes it.

    Raises:
        ValueError: another network has this name already.
    """
    name = factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"models: {name!r} is registered twice; rename one of the functions")
    _FACTORIES[name] = factory
    return factory


def names() -> list[str]:
    """The names of the project's own networks, sorted."""
    return sorted(_FACTORIES)


def describe() -> dict[str, str]:
    """Name -> one line: what the network is and the images it is made for."""
    return {name: (inspect.getdoc(_FACTORIES[name]) or "").split("\n")[0] for name in names()}


def create(name: str, classes: int, channels: int) -> nn.Module:
    """One of the project's own networks, without normalisation."""
    return _FACTORIES[name](classes, channels)
