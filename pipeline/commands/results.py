"""Commands on a finished run: `advprune gate` and `report`."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from advprune.errors import Refused
from deploy.errors import DeployError
from deploy.files import write_atomic
from deploy.gate import EXIT_CODES, update_baseline
from deploy.report import terminal
from deploy.verdicts import read
from pipeline.devices import use_threads
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context
from pipeline.stages.gate import GATED, judge, read_baseline
from pipeline.stages.verify import verdict_file
from pipeline.store import open_run
from pipeline.watch import Silent


def gate(
    run: Path,
    baseline: Path | None,
    margin: float,
    update: bool,
    reason: str | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> int:
    verification = open_run(run)["verify"]
    if update:
        if baseline is None:
            raise Refused("--update-baseline needs the file to write: add --baseline FILE")
        candidate = read(verification.file(verdict_file(GATED)))
        changed = update_baseline(baseline, candidate, reason or "")
        if as_json:
            _print_json({"baseline": str(baseline), "changed": changed})
        else:
            _print(changed)
        return 0
    if reason is not None:
        raise Refused("--reason belongs to --update-baseline")
    result = judge(verification, read_baseline(baseline), margin)
    if junit is not None:
        write_atomic(junit, result.to_junit())
    if markdown is not None:
        write_atomic(markdown, result.to_markdown().encode())
    if as_json:
        _print_json(result.to_dict())
    else:
        _print("\n".join([f"gate {result.status}", *(f"  {line}" for line in result.lines)]))
    return EXIT_CODES[result.status]


def report(run: Path, as_json: bool) -> int:
    artifact = open_run(run)["report"]
    content = json.loads(artifact.file("report.json").read_text())
    if as_json:
        _print_json(content)
        return 0
    terminal(content, Console())
    _print(f"{run}/report.html")
    return 0


def context_of(run: Path) -> Context:
    """What the verify stage of this run was given."""
    artifacts: Mapping[str, Artifact] = open_run(run)
    try:
        recipe = Recipe.model_validate(tomllib.loads((run / "recipe.toml").read_text()))
    except (OSError, ValueError) as error:
        raise DeployError(f"{run}/recipe.toml: not the recipe of a run ({error})", 65) from error
    use_threads(recipe.threads)
    return Context(recipe, artifacts, run, Silent())


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
