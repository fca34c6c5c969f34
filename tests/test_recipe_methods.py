"""What a preset sets for one method reaches that method alone, below all that people say."""

from pathlib import Path
from typing import Any

import pytest

from advprune.errors import Refused
from advprune.method import get, names
from pipeline import resolve as resolving
from pipeline.recipe import Recipe, known_keys
from pipeline.resolve import Sources, method_settings, presets, resolve, to_toml

TABLES = [(preset, method) for preset in presets() for method in names()]
SET = [pair for pair in TABLES if method_settings(*pair)]


def settled(
    flags: dict[str, Any] | None = None,
    file: Path | None = None,
    settings: list[str] | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[Recipe, Sources]:
    """`resolve` out of the reach of the variables that this process happens to have."""
    return resolve(flags or {}, file=file, settings=settings, environment=environment or {})


def value_of(recipe: Recipe, key: str) -> Any:
    found: Any = recipe.model_dump()
    for part in key.split("."):
        found = found[part]
    return found


# Tables of methods


def test_every_table_names_a_method_that_exists_and_keys_that_are_known() -> None:
    found = 0
    for preset in presets():
        for method in resolving._read_preset(preset).get("methods", {}):
            assert method in names(), (preset, method)
            options = {f"options.{option}" for option in get(method).model_fields}
            assert set(method_settings(preset, method)) <= set(known_keys()) | options
            found += 1
    assert found == len(SET) > 5


@pytest.mark.parametrize(("preset", "method"), SET)
def test_a_method_gets_its_table_and_says_where_from(preset: str, method: str) -> None:
    recipe, sources = settled({"preset": preset, "method": method})
    for key, value in method_settings(preset, method).items():
        assert value_of(recipe, key) == value, key
        assert sources[key] == f"preset {preset}, {method}"
    assert sources["model"] == f"preset {preset}"


@pytest.mark.parametrize(("preset", "method"), SET)
def test_the_table_of_one_method_does_not_reach_another(preset: str, method: str) -> None:
    other = next(name for name in names() if (preset, name) not in SET)
    recipe, sources = settled({"preset": preset, "method": other})
    plain = Recipe.model_validate(resolving._nest(resolving._preset_settings(preset)))
    table = method_settings(preset, method)
    assert any(value != value_of(plain, key) for key, value in table.items())
    for key in table:
        assert value_of(recipe, key) == value_of(plain, key)
        assert sources.get(key, f"preset {preset}") == f"preset {preset}"


def test_the_method_may_be_named_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('method = "hydra"\n')
    origins: list[dict[str, Any]] = [
        {"flags": {"method": "hydra"}},
        {"settings": ["method=hydra"]},
        {"environment": {"ADVPRUNE_METHOD": "hydra"}},
        {"file": path},
    ]
    for origin in origins:
        given = {**origin, "flags": {"preset": "cifar10", **origin.get("flags", {})}}
        recipe, sources = settled(**given)
        assert recipe.objective == "trades"
        assert sources["objective"] == "preset cifar10, hydra"
    # The last word names it, and only the one that is named counts.
    named = {"preset": "cifar10", "method": "hydra"}
    recipe, sources = settled(named, settings=["method=harp"])
    assert (recipe.method, recipe.objective) == ("harp", "pgd")


def test_whatever_people_say_beats_the_table_of_the_method(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[finetune]\nepochs = 7\n")
    named = {"preset": "cifar10", "method": "mad"}
    own, sources = settled(named)
    assert (own.finetune.epochs, sources["finetune.epochs"]) == (60, "preset cifar10, mad")
    layers: list[tuple[str, int, dict[str, Any]]] = [
        (f"file {path}", 7, {"file": path}),
        ("environment", 8, {"environment": {"ADVPRUNE_FINETUNE__EPOCHS": "8"}}),
        ("flag", 9, {"flags": {**named, "finetune.epochs": 9}}),
        ("--set", 10, {"settings": ["finetune.epochs=10"]}),
    ]
    given: dict[str, Any] = {"flags": named}
    for source, epochs, layer in layers:
        given |= layer
        recipe, sources = settled(**given)
        assert (recipe.finetune.epochs, sources["finetune.epochs"]) == (epochs, source)
        # What nobody speaks of stays the method's.
        assert recipe.finetune.objective == "mad"
        assert sources["finetune.objective"] == "preset cifar10, mad"


def test_a_key_of_a_table_that_is_not_known_is_refused_naming_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "# A preset for this test\n[methods.harp]\nfinetune.epoch = 3\n"
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setattr(resolving, "PRESETS", tmp_path)
    with pytest.raises(Refused, match=r"^preset mine, harp: setting 'finetune.epoch'"):
        settled({"preset": "mine"})
    assert settled({"preset": "mine", "method": "hydra"})[0].method == "hydra"


# The budget


BOTH: list[dict[str, Any]] = [
    {"flags": {"sparsity": 0.9, "compression": 4.0}},
    {"flags": {"sparsity": 0.9}, "settings": ["compression=4"]},
    {"flags": {"compression": 4.0}, "environment": {"ADVPRUNE_SPARSITY": "0.9"}},
]


@pytest.mark.parametrize("given", BOTH)
def test_two_budgets_for_one_network_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"--sparsity 0.9 and --compression 4.*give one") as refusal:
        settled(**given)
    assert refusal.value.exit_code == 2


def test_a_written_compression_takes_the_place_of_the_sparsity(tmp_path: Path) -> None:
    recipe, sources = settled({"compression": 5.5})
    text = to_toml(recipe, sources)
    assert "compression = 5.5  # flag" in text.splitlines()
    assert "sparsity" not in text
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    assert settled(file=path)[0] == recipe
    assert "compressed 5.5×" in recipe.title("cpu")
    assert "_c5.5_" in recipe.name
    # Without one, it is the other way round.
    plain, sources = settled({"sparsity": 0.75})
    assert "compression" not in to_toml(plain, sources)
    assert "75 % removed (4×)" in plain.title("cpu")
    assert "_s0.75_" in plain.name


# Objectives of stages


def test_a_stage_trains_under_its_own_objective_or_under_the_recipe_s() -> None:
    recipe, _ = settled(
        {"objective": "trades", "eps": 0.2}, settings=["finetune.objective=mad", "attack_steps=3"]
    )
    found = {
        stage: recipe.robust_objective(getattr(recipe, stage))
        for stage in ("adversarial", "prune", "finetune")
    }
    assert {stage: objective.name for stage, objective in found.items()} == {
        "adversarial": "trades",
        "prune": "trades",
        "finetune": "mad",
    }
    assert {objective.threat.eps for objective in found.values()} == {0.2}
    assert {objective.steps for objective in found.values()} == {3}
    weights = [found[stage].robust_weight for stage in ("prune", "finetune")]
    assert weights == [6.0, 0.5]
    assert recipe.finetune.schedule().epochs == recipe.finetune.epochs
