"""`advprune report`, and what commands need of a finished run."""

import json
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from advprune.errors import BadData, Unavailable
from deploy.report import check_schema, terminal
from pipeline.devices import fix_arithmetic
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context
from pipeline.store import open_run
from pipeline.watch import Silent


def report(run: Path, show: bool, as_json: bool) -> int:
    artifact = open_run(run)["report"]
    content = json.loads(artifact.read("report.json"))
    check_schema(content, f"{run}: its report")
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        terminal(content, Console())
        sys.stdout.write(f"{run}/report.html\n")
    if show and not webbrowser.open(artifact.file("report.html").resolve().as_uri()):
        raise Unavailable(
            f"{run}/report.html: found no browser to open it; copy this one file to where there is "
            "one, or name yours in BROWSER"
        )
    return 0


def context_of(run: Path) -> Context:
    """What the verify stage of this run was given."""
    artifacts: Mapping[str, Artifact] = open_run(run)
    # The recipe.toml beside it is for people, who may edit it; a manifest has a digest.
    path, config = artifacts["report"].path, artifacts["report"].manifest["config"]
    try:
        recipe = Recipe.model_validate(config.get("recipe"))
    except ValueError as error:
        raise BadData(f"{path}: holds no recipe of a run ({error}); run again") from error
    fix_arithmetic(recipe.threads)
    return Context(recipe, artifacts, run, Silent())
