"""Attacks as people write them: `pgd`, `apgd:steps=20,loss=dlr`, `torchattacks:MIFGSM:steps=20`."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args, get_origin

from advprune import attacks
from advprune.attacks import Attack
from advprune.attacks.losses import LOSSES, Loss
from advprune.errors import Refused

ZOO = "torchattacks:"


def parse(text: str) -> Attack:
    """The attack that a line of text names, with its settings.

    Args:
        text: NAME or NAME:KEY=VALUE,KEY=VALUE; NAME may start with `torchattacks:`.

    Raises:
        Refused: there is no such attack or setting, or the setting cannot have such a value.
    """
    library = text.startswith(ZOO)
    name, _, given = text.removeprefix(ZOO).partition(":")
    values = _pairs(text, given)
    if library:
        # The library takes a second to import, and most runs do not need it.
        from advprune.attacks import zoo

        return zoo.make(name, {key: _literal(value) for key, value in values.items()})
    attack = attacks.get(name)
    known = settings(attack)
    chosen = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise Refused(f"attack {name}: setting {key!r} is not known; {hint}")
        chosen[key] = _typed(name, key, value, known[key].annotation)
    return partial(attack, **chosen) if chosen else attack


def settings(attack: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The settings of one of our attacks that can be written down, by name."""
    return {
        parameter.name: parameter
        for parameter in inspect.signature(attack).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and _writable(parameter.annotation)
    }


def _pairs(text: str, given: str) -> dict[str, str]:
    """KEY=VALUE,KEY=VALUE as a table."""
    values: dict[str, str] = {}
    for pair in filter(None, given.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key in values:
            raise Refused(f"attack {text!r}: settings are KEY=VALUE, each once; got {pair!r}")
        values[key.strip()] = value.strip()
    return values


def _writable(kind: Any) -> bool:
    return kind in (Loss, int, float, float | None, int | None) or get_origin(kind) is Literal


def _typed(attack: str, key: str, value: str, kind: Any) -> Any:
    """The value as the kind of thing that the setting is."""
    try:
        if kind == Loss:
            return LOSSES[value]
        if get_origin(kind) is Literal:
            return {str(choice): choice for choice in get_args(kind)}[value]
        if kind in (int, int | None):
            return int(value)
        number = float(value)
    except (ValueError, KeyError):
        number = math.nan
    if math.isnan(number):
        raise Refused(f"attack {attack}: {key}={value!r} must be {_words(kind)}")
    return number


def _words(kind: Any) -> str:
    if kind == Loss:
        return f"one of {', '.join(LOSSES)}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return "an integer" if kind in (int, int | None) else "a number"


def _literal(value: str) -> Any:
    """An integer, a number, a truth value or text, whichever it reads as first."""
    if value in ("True", "False"):
        return value == "True"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
