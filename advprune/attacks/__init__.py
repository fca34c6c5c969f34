"""The attacks: one file each, holding a function of the file's name and a CARD.

Every one is called as `attack(model, x, y, threat, rng)` and returns images of the shape of `x`
inside the threat model; further settings are keywords. None has side effects.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Literal

from advprune.errors import Refused
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat

Attack = Callable[[Classifier, Images, Labels, Threat, ImageRandom], Images]


@dataclass(frozen=True)
class Card:
    """Where an attack comes from and what it must be able to ask the model for."""

    paper: str
    needs: Literal["gradient", "scores"]


def _modules() -> dict[str, ModuleType]:
    found = {
        info.name: importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    }
    return {name: module for name, module in found.items() if hasattr(module, "CARD")}


def names() -> list[str]:
    """The names of all attacks, sorted."""
    return sorted(_modules())


def describe() -> list[dict[str, str]]:
    """One row per attack: name, paper, needs."""
    return [{"name": name} | asdict(module.CARD) for name, module in sorted(_modules().items())]


def get(name: str) -> Attack:
    """The attack of this name.

    Raises:
        Refused: there is none.
    """
    modules = _modules()
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; use one of {', '.join(names())}"
        raise Refused(f"attack: {name!r} is not known{hint}")
    return getattr(modules[name], name)
