"""The command line inside this process, and the settings of a run that takes seconds."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main

STAGES = (
    "data",
    "standard",
    "adversarial",
    "prune",
    "finetune",
    "quantize",
    "export",
    "verify",
    "gate",
    "report",
    "bundle",
)
# As little training as leaves a network that 8 bits do not change much. Training through 8 bits has
# tests of its own, and takes as long as all other training here.
_SETTINGS = {
    "threads": 1,  # as many tests run side by side as there are cores
    "limit_test": 200,
    "attack_steps": 2,
    "standard.epochs": 1,
    "adversarial.epochs": 2,
    "prune.epochs": 1,
    "finetune.epochs": 3,
    "quantize.epochs": 1,
    "quantize.how": "ptq",
    "verify.steps": 10,
    "verify.queries": 5,
    "verify.restarts": 1,
    "verify.images": 120,
    "verify.fmn": 5,
    "verify.health": 20,
}
TINY = [word for key, value in _SETTINGS.items() for word in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote to each stream."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def advprune(*words: str | Path) -> Result:
    """Run a command as `advprune WORDS` would."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit:
        main([str(word) for word in words])
    assert isinstance(exit.value.code, int)
    return Result(exit.value.code, out.getvalue(), err.getvalue())


def refusal(result: Result, code: int) -> str:
    """The one line that a command was refused with."""
    assert result.code == code, result
    assert result.err.startswith("advprune: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.out + result.err
    return result.err.removeprefix("advprune: ").rstrip("\n")


@dataclass(frozen=True)
class Tiny:
    """The shared run. Tests add other runs beside it and leave its artefacts as they are."""

    runs: Path
    result: Result
    run: Path

    def again(self, *words: str | Path) -> Result:
        return advprune("run", "--runs", self.runs, *TINY, *words)

    def artefact(self, stage: str) -> Path:
        return next(self.run.glob(f"[0-9][0-9]_{stage}")).resolve()

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.artefact(stage) / "manifest.json").read_text())

    @property
    def store(self) -> set[str]:
        return {path.name for path in (self.runs / "store").iterdir()}

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "report.json").read_text())

    def verdicts(self, engine: str) -> Path:
        return self.artefact("verify") / f"verdicts.{engine}.json"
