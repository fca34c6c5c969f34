"""The words on the screen: help that costs nothing, JSON everywhere, one line for a refusal."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from tiny_run import STAGES, advprune, refusal

from advprune.method import get, names
from pipeline.cli import main
from pipeline.commands import running

COMMANDS = (
    "run",
    "plan",
    "verify",
    "bench",
    "export",
    "gate",
    "report",
    "methods",
    "attacks",
    "data",
    "models",
    "doctor",
    "init",
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command begins in an empty folder, out of the reach of the user's variables."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("ADVPRUNE_"):
            monkeypatch.delenv(name)
    return tmp_path


# Help -------------------------------------------------------------------------------------------


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("advprune")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE) for name in COMMANDS)


def test_no_words_at_all_show_the_help() -> None:
    result = advprune()
    assert result.code == 0
    assert result.out == advprune("--help").out
    assert result.out.count("\n") > len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_offers_json(command: str) -> None:
    result = advprune(command, "--help")
    assert result.code == 0
    assert "--json" in result.out


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("command", ["run", "plan"])
def test_help_lists_the_options_of_the_named_method_with_their_choices(
    command: str, method: str
) -> None:
    text = re.sub(r"\s+", " ", advprune(command, "--method", method, "--help").out)
    for name, field in get(method).model_fields.items():
        if name != "sparsity":
            assert f"--{name.replace('_', '-')} " in text
            assert f"[{method}] {field.description}"[:20] in text
        if get_origin(field.annotation) is Literal:
            assert ", ".join(get_args(field.annotation)) in text
    others = set(get("harp").model_fields) - set(get(method).model_fields)
    assert not any(f"--{name.replace('_', '-')} " in text for name in others - {"set"})


# Lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["methods", "attacks", "data", "models"])
def test_a_list_is_a_table_or_json(what: str) -> None:
    rows = advprune(what, "--json").json
    assert rows
    assert all(row.keys() == rows[0].keys() for row in rows)
    table = advprune(what)
    assert table.code == 0
    shown = re.sub(r"\s+", "", table.out)
    assert all(re.sub(r"\s+", "", next(iter(row.values()))) in shown for row in rows)


# Plan -------------------------------------------------------------------------------------------


def test_a_plan_shows_every_stage_and_makes_nothing(empty_folder: Path) -> None:
    shown = advprune("plan", "--set", "attack_steps=1")
    assert shown.code == 0
    title, *rows = shown.out.splitlines()
    rows, told = rows[: len(STAGES)], rows[len(STAGES) :]
    assert title.startswith("harp · 90 % removed (10×) · digits_resnet · digits")
    assert [row.split()[0] for row in rows] == list(STAGES)
    assert not any("cached" in row for row in rows)
    assert [row.split()[0] for row in rows if "about" in row] == list(STAGES[1:6])

    document = advprune("plan", "--set", "attack_steps=1", "--json")
    assert document.out.count("\n") == 1
    entries = document.json
    assert [entry["name"] for entry in entries] == list(STAGES)
    assert all(entry["seconds"] > 0 for entry in entries[1:6])
    outlook = entries[STAGES.index("gate")]["outlook"]
    assert told[0] == f" {outlook['lines'][0]}"
    assert outlook["warnings"][0] in told[1]
    assert "outlook" not in entries[0]
    assert list(empty_folder.iterdir()) == []


def test_a_path_is_not_taken_for_markup(empty_folder: Path) -> None:
    (empty_folder / "[red]").mkdir()
    result = advprune("run", "--data", "folder:[red]/[/x]")
    assert "no folder" in refusal(result, 66)
    assert "folder:[red]/[/x]" in result.out


# Refusals and crashes ---------------------------------------------------------------------------


def test_an_option_that_is_not_the_methods_is_refused_with_those_that_are_near() -> None:
    message = refusal(advprune("run", "--method", "magnitude", "--gamma", "1"), 2)
    assert "--gamma" in message
    assert "--data" in refusal(advprune("run", "--dada", "x"), 2)
    assert "nonsense" in refusal(advprune("nonsense"), 2)
    assert "extra" in refusal(advprune("run", "extra"), 2)
    assert "--method" in refusal(advprune("run", "--method"), 2)


def test_with_json_a_refusal_is_json() -> None:
    result = advprune("run", "--json", "--sparsity", "90")
    assert result.code == 2
    assert result.err == ""
    assert result.json["exit_code"] == 2
    assert "did you mean 0.90?" in result.json["error"]


def raising(error: BaseException) -> Any:
    def run(values: dict) -> int:
        raise error

    return run


def test_ctrl_c_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "run", raising(KeyboardInterrupt()))
    assert "goes on where this one stopped" in refusal(advprune("run"), 130)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "run", raising(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_debug_shows_the_traceback_of_a_refusal() -> None:
    with pytest.raises(Exception, match=r"did you mean 0\.90"):
        main(["run", "--debug", "--sparsity", "90"])


def test_a_terminal_that_lacks_a_sign_ends_nothing() -> None:
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(poor), pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 0
    poor.seek(0)
    assert " ? torch" in poor.read()


def test_the_switch_that_makes_torch_load_unsafe_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    advprune("--help")
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
