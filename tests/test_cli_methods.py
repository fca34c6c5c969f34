"""`advprune methods` is the taxonomy of the methods, `advprune methods NAME` all about one."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from tiny_run import advprune, refusal

from advprune.card import LEGEND
from advprune.method import get, names
from pipeline.resolve import method_settings, presets

AXES = ("pipeline", "pretraining", "finetuning", "shots", "structure", "locality", "criterion")


@pytest.fixture(autouse=True)
def wide_and_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")


def squeezed(text: Any) -> str:
    """Without blanks, of which a table has more."""
    return re.sub(r"\s+", "", str(text))


def test_the_list_of_methods_is_the_registry_with_every_axis() -> None:
    rows = advprune("methods", "--json").json
    assert [row["method"] for row in rows] == names()
    for row in rows:
        card = get(row["method"]).card
        assert {axis: row[axis] for axis in AXES} == {axis: getattr(card, axis) for axis in AXES}
        assert (row["title"], row["year"]) == (card.title, card.year)
        assert row["what it does"] == card.summary
        assert row["benchmark"] == (card.entry or None)


def test_the_table_has_a_row_for_every_method_and_a_legend_below() -> None:
    shown = advprune("methods")
    assert shown.code == 0
    lines = shown.out.splitlines()
    for name in names():
        card = get(name).card
        (row,) = [line for line in lines if line.split()[:1] == [name]]
        values = [name, card.year, *(getattr(card, axis) for axis in AXES)]
        assert squeezed(row) == squeezed("".join(map(str, values)))
    below = squeezed(shown.out)
    assert all(squeezed(f"{short} {long}") in below for short, long in LEGEND.items())


def test_a_narrow_terminal_gets_the_same_table_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = advprune("methods")
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 60
    # Folded, not cut: no value ends in dots.
    assert "…" not in shown.out


@pytest.mark.parametrize("name", names())
def test_the_card_of_a_method_says_everything_on_it(name: str) -> None:
    method = get(name)
    card = method.card
    shown = advprune("methods", name)
    assert shown.code == 0
    text = squeezed(shown.out)
    for line in (card.title, card.summary, card.paper, *card.equations, *card.departures):
        assert squeezed(line) in text
    for axis in AXES:
        assert squeezed(f"{axis} {getattr(card, axis)}") in text
    for option, field in method.model_fields.items():
        flag = "--" + option.replace("_", "-")
        assert squeezed(f"{flag} {field.default} {field.description}") in text, flag
    for preset in presets():
        given = ", ".join(f"{k}={v}" for k, v in method_settings(preset, name).items())
        assert squeezed(f"{preset} {given or 'as all methods'}") in text
    for short in {card.structure, card.shots, card.criterion} & set(LEGEND):
        assert squeezed(f"{short} ({LEGEND[short]})") in text


@pytest.mark.parametrize("name", names())
def test_the_card_as_json_is_the_row_and_more(name: str) -> None:
    document = advprune("methods", name, "--json")
    assert (document.code, document.out.count("\n")) == (0, 1)
    about = document.json
    (row,) = [row for row in advprune("methods", "--json").json if row["method"] == name]
    assert {key: about[key] for key in row} == row
    method = get(name)
    assert about["paper"] == method.card.paper
    assert tuple(about["equations"]) == method.card.equations
    assert tuple(about["departures"]) == method.card.departures
    options = {option["name"]: option for option in about["options"]}
    assert list(options) == list(method.model_fields)
    for option, field in method.model_fields.items():
        assert options[option]["default"] == field.default
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        ending = f": {', '.join(choices)}" if choices else ""
        assert options[option]["description"] == f"{field.description}{ending}"
    assert about["presets"] == {preset: method_settings(preset, name) for preset in presets()}


def test_a_method_that_is_not_there_is_refused_with_the_nearest() -> None:
    assert "'hrap' is not known; did you mean harp" in refusal(advprune("methods", "hrap"), 2)
    as_json = advprune("methods", "hrap", "--json")
    assert (as_json.code, as_json.err) == (2, "")
    assert as_json.json["exit_code"] == 2
    assert "harp" in as_json.json["error"]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_the_budgets_and_the_extra_images_are_options(command: str) -> None:
    text = re.sub(r"\s+", " ", advprune(command, "--help").out)
    for option in ("--sparsity", "--compression", "--extra-data"):
        assert f"{option} " in text


def test_two_budgets_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    message = refusal(advprune("run", "--sparsity", "0.9", "--compression", "4"), 2)
    assert "two budgets for one network; give one" in message
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_a_compression_says_so() -> None:
    words = ["--set", "attack_steps=1", "--set", "threads=1"]
    shown = advprune("plan", "--method", "magnitude", "--compression", "8", *words)
    assert shown.code == 0
    assert shown.out.startswith("magnitude · compressed 8× · digits_resnet · digits")


def test_a_survey_has_no_estimate_for_its_pass_and_a_stage_without_epochs_costs_nothing() -> None:
    words = ["--set", "attack_steps=1", "--set", "threads=1", "--set", "adversarial.epochs=0"]
    words.append("--json")
    entries = {entry["name"]: entry for entry in advprune("plan", "--method", "gap", *words).json}
    assert entries["prune"]["seconds"] is None
    assert entries["adversarial"]["seconds"] == 0
    assert entries["finetune"]["seconds"] > 0


def test_extra_images_that_are_not_there_are_refused() -> None:
    assert "nowhere" in refusal(advprune("run", "--extra-data", "nowhere"), 66)
