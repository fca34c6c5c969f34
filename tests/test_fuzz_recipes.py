"""Whatever is written into a recipe or given as `--set` is a recipe, or is refused in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from advprune.errors import Refused
from advprune.method import get, names
from pipeline.recipe import Recipe, known_keys
from pipeline.resolve import presets, resolve, to_toml

FEW_AND_MANY = pytest.mark.parametrize(
    "examples", [25, pytest.param(2000, marks=pytest.mark.slow, id="many")]
)
KEYS = [
    *known_keys(),
    *(f"options.{field}" for name in names() for field in get(name).model_fields),
]
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.integers(0, 9).map(lambda number: number / 10),
    st.text(),
    st.sampled_from(["8/255", "1/0", "90", "harp", "channel", "folder:", "a:b", "../x\0", "nan"]),
    st.sampled_from([*names(), *presets()]),
    st.sampled_from([10**30, -(10**30), 2**63, 0, 1, -1, 1e308, 5e-324]),
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=2)
TREES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
STRANGE_TREES = st.dictionaries(
    st.lists(st.sampled_from([*KEYS, *"abc", ""]) | st.text(), min_size=1, max_size=3).map(
        ".".join
    ),
    VALUES,
    max_size=3,
)


def always(examples: int) -> Callable[[Any], Any]:
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow
    )


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return text(value) if isinstance(value, str) else str(value).lower()


def text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def settled(tmp_path: Path, **given: Any) -> Recipe | None:
    """The recipe, which its own file gives again; None if there is none, and why was told."""
    try:
        recipe, sources = resolve(given.pop("flags", {}), environment={}, **given)
    except Refused as error:
        assert error.exit_code in (2, 66), error
        assert str(error).isprintable() and str(error)
        return None
    again = tmp_path / "again.toml"
    again.write_text(to_toml(recipe, sources), encoding="utf-8")
    assert resolve({}, file=again, environment={})[0] == recipe
    return recipe


@FEW_AND_MANY
def test_every_file_is_a_recipe_or_refused(tmp_path: Path, examples: int) -> None:
    path, outcomes = tmp_path / "recipe.toml", set()

    @always(examples)
    @given(TREES | STRANGE_TREES)
    @example({})
    @example({"sparsity": 1.0})
    def holds(tree: dict[str, Any]) -> None:
        lines = [f"{'.'.join(map(text, key.split('.')))} = {toml(v)}" for key, v in tree.items()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        outcomes.add(settled(tmp_path, file=path) is None)

    holds()
    assert outcomes == {True, False}


@FEW_AND_MANY
def test_every_text_is_a_recipe_or_refused(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "recipe.toml"

    @always(examples)
    @given(st.binary() | st.text().map(lambda words: words.encode("utf-8", "surrogatepass")))
    @example(b"a = " + b"[" * 5000)
    @example(b"a." * 5000 + b"b = 1")
    @example(b"seed = " + b"9" * 5000)
    @example(b"seed = 1979-05-27T07:32:00Z")
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        settled(tmp_path, file=path)

    holds()


@FEW_AND_MANY
def test_every_setting_is_taken_or_refused(tmp_path: Path, examples: int) -> None:
    pairs = st.tuples(st.sampled_from(KEYS), VALUES.map(toml) | st.text()).map("=".join)

    @always(examples)
    @given(st.lists(pairs | st.text(), min_size=1, max_size=4))
    @example(["seed=" + "[" * 5000])
    @example(["=" * 50])
    @example(["a" + ".a" * 2000 + "=1"])
    def holds(words: list[str]) -> None:
        settled(tmp_path, settings=words)

    holds()


@FEW_AND_MANY
def test_every_environment_is_taken_or_refused(examples: int) -> None:
    variables = st.sampled_from(KEYS).map(lambda key: "ADVPRUNE_" + key.upper().replace(".", "__"))

    @always(examples)
    @given(st.dictionaries(variables, VALUES.map(toml) | st.text(), max_size=3))
    def holds(environment: dict[str, str]) -> None:
        try:
            resolve({}, environment=environment)
        except Refused as error:
            assert str(error).isprintable()

    holds()
    assert "ADVPRUNE_SEED" not in os.environ
