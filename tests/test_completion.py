"""The shell completes commands, options, methods and presets, and waits for no heavy import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advprune.method import names
from pipeline import completion
from pipeline.resolve import presets

ROOT = Path(__file__).parents[1]
# The program under its own name, as its entry point starts it; and what it has imported.
PROGRAM = """
import atexit, sys
sys.argv[0] = "advprune"
atexit.register(lambda: sys.stderr.write(" ".join(sys.modules)))
from pipeline.cli import main
main()
"""
# Typer itself takes pydantic and rich.
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "safetensors", "scipy"}


def start(*words: str, **environment: str) -> tuple[list[str], set[str]]:
    """The lines that a fresh process prints, and the heavy modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), HEAVY & set(done.stderr.split())


def in_bash(*words: str) -> tuple[list[str], set[str]]:
    """What is offered for the last of these words."""
    asked = {"COMP_WORDS": "\n".join(("advprune", *words)), "COMP_CWORD": str(len(words))}
    return start(_ADVPRUNE_COMPLETE="complete_bash", **asked)


def test_the_commands_are_offered_without_a_heavy_import() -> None:
    offered, heavy = in_bash("")
    assert {"run", "plan", "methods", "bundle", "doctor"} <= set(offered)
    assert not heavy
    assert in_bash("me")[0] == ["methods"]


@pytest.mark.parametrize("words", [("run", "--method"), ("plan", "-m"), ("methods",)])
def test_the_methods_are_offered_without_importing_one(words: tuple[str, ...]) -> None:
    offered, heavy = in_bash(*words, "")
    assert offered == names()
    assert not heavy
    assert in_bash(*words, "ha")[0] == ["harp"]


def test_options_and_fixed_choices_are_offered() -> None:
    assert in_bash("run", "--chec")[0] == ["--checkpoint-steps"]
    assert in_bash("run", "--preset", "")[0] == sorted(presets())
    assert in_bash("run", "--norm", "l")[0] == ["linf", "l2"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_in_their_own_way(shell: str) -> None:
    asked = {"_ADVPRUNE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "advprune me"}
    asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    offered, heavy = start(**asked)
    assert "methods" in " ".join(offered)
    assert not heavy


@pytest.mark.parametrize(
    ("shell", "sign"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef advprune"), ("fish", "complete ")],
)
def test_a_script_is_shown(shell: str, sign: str) -> None:
    # Else the name of the shell is read off the processes, which differ wherever tests run.
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    lines, heavy = start("--show-completion", shell, **told)
    assert any(line.startswith(sign) for line in lines)
    assert "_ADVPRUNE_COMPLETE" in "\n".join(lines)
    assert not heavy


def test_bash_reads_the_script_and_completes_by_it(tmp_path: Path) -> None:
    program = tmp_path / "advprune"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{PROGRAM}' \"$@\" 2>/dev/null\n")
    program.chmod(0o755)
    asked = """
        eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 advprune --show-completion bash)"
        COMP_WORDS=(advprune methods h) COMP_CWORD=2
        _advprune_completion advprune
        echo "${COMPREPLY[*]}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [name for name in names() if name.startswith("h")]


def test_what_is_offered_is_what_there_is() -> None:
    assert completion.methods("") == names()
    assert completion.presets("") == sorted(presets())
    assert completion.methods("no such") == []
