"""Methods whose public description does not determine them: cards, and nothing that runs.

A file here holds a `CARD` that says what is publicly known, and in `missing` what is not. Whatever
would fill the gap would be an invention under another's name, so none of these can be asked for.
"""

import importlib
import pkgutil

from advprune.card import Card


def names() -> list[str]:
    """What is described, read off the folder without importing any of it."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def card(name: str) -> Card:
    """The card of one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}").CARD
