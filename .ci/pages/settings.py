"""The page of the recipe: every setting, what it can be, its default, its option, its presets."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pages.markdown import MADE, code, table, value_of
from pages.meanings import meaning
from pipeline.options import RECIPE_OPTIONS
from pipeline.recipe import Recipe, known_keys
from pipeline.resolve import PRESETS, presets
from pipeline.sections import Section

_INTRODUCTION = """# Settings

All of a run is said by its recipe. A setting comes from, in rising order: its default, the
preset, the file of `--recipe FILE`, the environment (`ADVPRUNE_STANDARD__EPOCHS=3`), its option,
`--set KEY=VALUE`. `recipe.toml` in a run's folder is the whole of it, each value with where it
came from, and runs again as it stands. A key that does not exist is refused with the nearest one
that does.

    advprune run --eps 8/255 --set finetune.epochs=30 --set 'verify.attacks=["cw"]'
    advprune run --recipe runs/latest/recipe.toml

Values of `--set` and of the environment are TOML, or else plain text. The column of presets shows
what they set otherwise; where a preset sets something for one method alone, as the method's paper
does, the [page of the method](methods/README.md) says so. `options.NAME` are the options of the
method.

"""
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_KINDS = {int: "integer", float: "number", str: "text", bool: "switch", Path: "path"}


@dataclass(frozen=True)
class Setting:
    """One key of the recipe as a row of a table."""

    key: str
    kind: str
    default: Any
    option: str
    means: str


def page() -> str:
    parts = [f"{MADE}\n\n{_INTRODUCTION}## Presets\n\n", _presets(), "\n## The run\n\n"]
    parts.append(rows_of([key for key in known_keys() if "." not in key]))
    for name in _sections():
        keys = [key for key in known_keys() if key.startswith(f"{name}.")]
        parts.append(f"\n## {name}\n\nThe stage [{name}](stages/{name}.md).\n\n{rows_of(keys)}")
    return "".join(parts)


def rows_of(keys: Sequence[str]) -> str:
    """A table of these settings."""
    given = {name: _preset(name) for name in presets()}
    rows = []
    for one in map(_setting, keys):
        named = f"`{one.key}`" + (f" `{one.option}`" if one.option else "")
        own = [
            f"{name} `{value_of(values[one.key])}`"
            for name, values in given.items()
            if values.get(one.key, one.default) != one.default
        ]
        rows.append([named, one.kind, code(one.default), ", ".join(own), one.means])
    return table(["setting", "kind", "default", "in presets", "what it is"], rows)


def _presets() -> str:
    return table(
        ["preset", "what it is"], [[f"`{name}`", text] for name, text in presets().items()]
    )


def _sections() -> list[str]:
    """In the order of the recipe."""
    return list(dict.fromkeys(key.partition(".")[0] for key in known_keys() if "." in key))


def _setting(key: str) -> Setting:
    """Raises LookupError where nobody has said what it means."""
    section, _, leaf = key.rpartition(".")
    fields = Recipe.model_fields
    owner: Any = fields[section].default if section else None
    field = type(owner).model_fields[leaf] if section else fields[leaf]
    default = getattr(owner, leaf) if section else field.default
    option = next((o for o in RECIPE_OPTIONS if o.key == key), None)
    means = meaning(key) or (option and f"{option.help[0].lower()}{option.help[1:].rstrip('.')}")
    if not means:
        raise LookupError(f"{key}: say what it means, in .ci/pages/meanings.py")
    return Setting(key, _kind(field), default, option.flags[0] if option else "", means)


def _kind(field: FieldInfo) -> str:
    inner = [a for a in _union(field.annotation) if a is not type(None)]
    words = " or ".join(_word(kind) for kind in inner)
    bounds = [
        f"{sign} {_bound(getattr(entry, name))}"
        for entry in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(entry, name, None) is not None
    ]
    return f"{words} {', '.join(bounds)}" if bounds else words


def _union(annotation: Any) -> tuple[Any, ...]:
    is_one = get_origin(annotation) in (None, Literal, tuple, list, dict)
    return (annotation,) if is_one else get_args(annotation)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Section):
        return "table"
    return _KINDS.get(kind, "list of text")


def _bound(value: float) -> str:
    return "2⁶⁴" if value == 2**64 else f"{value:g}"


def _preset(name: str) -> dict[str, Any]:
    """What a preset sets for all methods, by dotted key."""
    tree = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    tree.pop("methods", None)
    tops = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
    return tops | {
        f"{key}.{leaf}": v for key, leaves in tables.items() for leaf, v in leaves.items()
    }
