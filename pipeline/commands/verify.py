"""`advprune verify`: attack the engines of a finished run anew, as hard as before or harder."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from advprune.evaluate import InvalidEvaluation
from deploy.findings import show
from deploy.suites import suite
from deploy.verdicts import read, verdict_file
from deploy.verify import Verification
from pipeline.commands.results import context_of
from pipeline.files import make_folder
from pipeline.stage import Context
from pipeline.stages.verify import attack, record


def verify(run: Path, suite_name: str | None, as_json: bool) -> int:
    """Exit 11 where the evaluation is invalid, or where the run's own cannot be reproduced.

    With a suite, what it finds is written into the folder `verify-SUITE` of the run.
    """
    context = context_of(run)
    recipe = context.recipe
    if suite_name is None:
        found = attack(context, recipe.verify.settings(recipe.seed))
        changed = _changed(context, found)
        conclusion = f"{changed} verdicts differ from the report's"
    else:
        found = attack(context, suite(suite_name, more=recipe.verify.attacks, seed=recipe.seed))
        changed, folder = 0, run / f"verify-{suite_name}"
        make_folder(folder)
        record(context, found, folder)
        conclusion = str(folder)
    if as_json:
        _print(json.dumps(_plain(found, changed)))
    else:
        show(Console(), found.verdicts, found.curve, found.health, recipe.threat().to_dict())
        _print(conclusion)
    return InvalidEvaluation.exit_code if found.invalid or changed else 0


def _changed(recorded: Context, found: Verification) -> int:
    """How many verdicts are not those of the report."""
    changed = 0
    for engine, verdicts in found.verdicts.items():
        then = read(recorded["verify"].file(verdict_file(engine))).flags
        changed += sum(
            now != before
            for name, flags in verdicts.items()
            for now, before in zip(flags, then[name], strict=True)
        )
    return changed


def _plain(found: Verification, changed: int) -> dict[str, Any]:
    rows = [
        {"engine": engine, "attack": name, "accuracy": sum(flags) / len(flags)}
        for engine, verdicts in found.verdicts.items()
        for name, flags in verdicts.items()
    ]
    health = [asdict(check) for check in found.health]
    status = "INVALID" if found.invalid else "OK"
    return {
        "rows": rows,
        "changed": changed,
        "health": health,
        "status": status,
        "curve": found.curve,
        "transfer": found.transfer,
    }


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
