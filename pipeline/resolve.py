"""Where settings come from: one checked recipe out of all sources.

Precedence: defaults < preset < recipe file < ADVPRUNE_* < flags < --set a.b=v.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from advprune.errors import NotFound, Refused
from pipeline.recipe import Recipe, known_keys
from pipeline.wording import first_error, unknown

Sources = dict[str, str]
PRESETS = Path(__file__).parent / "presets"
LARGEST_FILE = 1_000_000  # bytes; a recipe that spells out every setting has 3,000


def presets() -> dict[str, str]:
    """Preset name -> its first comment line."""
    return {
        path.stem: path.read_text().splitlines()[0].lstrip("# ")
        for path in sorted(PRESETS.glob("*.toml"))
    }


def resolve(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    settings: list[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> tuple[Recipe, Sources]:
    """Merge all sources into one checked recipe.

    Args:
        flags: dotted field name -> value, None where the flag was not given.
        settings: `a.b=value` texts of --set; values are TOML, or plain text.

    Returns:
        The recipe, and for every dotted key that is not a default the source of its value.

    Raises:
        Refused: an unknown key (with the nearest) or a value out of range.
        NotFound: the recipe file does not exist.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((f"file {file}", _read_toml(file)))
    layers.append(("environment", _from_environment(environment)))
    layers.append(("flag", {key: value for key, value in flags.items() if value is not None}))
    layers.append(("--set", dict(_parse_setting(text) for text in settings or [])))
    given = {key: value for _, layer in layers for key, value in layer.items()}
    if "sparsity" in given and "compression" in given:
        raise Refused(
            f"--sparsity {given['sparsity']} and --compression {given['compression']}: two budgets "
            "for one network; give one"
        )
    chosen = _preset_name(given)
    method = str(given.get("method", Recipe.model_fields["method"].default))
    layers = [
        (f"preset {chosen}", _preset_settings(chosen) | {"preset": chosen}),
        (f"preset {chosen}, {method}", method_settings(chosen, method)),
        *layers,
    ]

    values: dict[str, Any] = {}
    sources: Sources = {}
    for source, layer in layers:
        for key, value in layer.items():
            _check_key(key, source)
            values[key] = value
            sources[key] = source
    try:
        recipe = Recipe.model_validate(_nest(values))
    except ValidationError as error:
        raise Refused(first_error(error, sources)) from None
    recipe.pruning_method()
    return recipe, sources


def to_toml(recipe: Recipe, sources: Sources) -> str:
    """The resolved recipe as a file that runs again, each value with its source."""
    tops: list[str] = []
    tables: dict[str, list[str]] = {}
    # One budget: the other would be refused when the file is read again.
    unused = {"sparsity"} if recipe.compression is not None else None
    tree = recipe.model_dump(mode="json", exclude_none=True, exclude=unused)
    for key, value in flatten(tree).items():
        table, _, leaf = key.rpartition(".")
        line = f"{leaf} = {json.dumps(value, ensure_ascii=False)}  # {sources.get(key, 'default')}"
        (tables.setdefault(table, []) if table else tops).append(line)
    parts = ["\n".join(tops)]
    parts += [f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items()]
    return "\n\n".join(parts) + "\n"


def _preset_name(values: Mapping[str, Any]) -> str:
    """The preset asked for, else the one made for the data."""
    data = str(values.get("data", "digits"))
    fitting = data if data in ("digits", "svhn", "imagenet") else "cifar10"
    return str(values.get("preset", fitting))


def method_settings(preset: str, method: str) -> dict[str, Any]:
    """What a preset sets for one method alone, as its paper does: dotted key -> value."""
    return flatten(_read_preset(preset).get("methods", {}).get(method, {}))


def _preset_settings(name: str) -> dict[str, Any]:
    """What a preset sets for all methods: dotted key -> value."""
    tree = _read_preset(name)
    return flatten({key: value for key, value in tree.items() if key != "methods"})


def _read_preset(name: str) -> dict[str, Any]:
    if name not in presets():
        raise Refused(unknown("--preset", name, list(presets())))
    return tomllib.loads((PRESETS / f"{name}.toml").read_text())


def _read_toml(path: Path) -> dict[str, Any]:
    """What a recipe file sets: dotted key -> value."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise Refused(f"--recipe {path}: larger than {LARGEST_FILE:,} bytes; not a recipe")
        return flatten(tomllib.loads(content.decode()))
    except FileNotFoundError:
        raise NotFound(f"--recipe {path}: no such file") from None
    # Not a number of digits beyond what Python converts, nor brackets beyond its stack.
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"--recipe {path}: not a TOML file ({error})") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """ADVPRUNE_STANDARD__EPOCHS=3 means standard.epochs=3."""
    prefix = "ADVPRUNE_"
    return {
        key.removeprefix(prefix).lower().replace("__", "."): setting(text)
        for key, text in environment.items()
        if key.startswith(prefix)
    }


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Refused(f"--set {text!r}: expected KEY=VALUE, e.g. --set prune.epochs=5")
    return key.strip(), setting(value.strip())


def setting(text: str) -> Any:
    """One TOML value, or else the text itself: so also where it goes on with other keys."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _check_key(key: str, source: str) -> None:
    table, _, leaf = key.partition(".")
    is_option = table == "options" and leaf and "." not in leaf  # of the method, which checks it
    if not is_option and key not in known_keys():
        raise Refused(unknown(f"{source}: setting", key, known_keys()))
