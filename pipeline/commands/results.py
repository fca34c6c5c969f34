"""`advprune report`, and what commands need of a finished run."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from deploy.errors import DeployError
from deploy.report import terminal
from pipeline.devices import use_threads
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context
from pipeline.store import open_run
from pipeline.watch import Silent


def report(run: Path, as_json: bool) -> int:
    artifact = open_run(run)["report"]
    content = json.loads(artifact.file("report.json").read_text())
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return 0
    terminal(content, Console())
    sys.stdout.write(f"{run}/report.html\n")
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
