"""Stage 8: may this engine ship? Against a baseline where there is one, else against its float."""

import json
from pathlib import Path

from deploy.errors import DeployError
from deploy.gate import EXIT_CODES, Check, GateResult, evaluate
from deploy.verdicts import Verdicts, read
from pipeline.files import sha256
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context, Metrics, Stage
from pipeline.stages.verify import FINDINGS, verdict_file

GATED = "int8"
REFERENCE = "fp32"


def stage(recipe: Recipe) -> Stage:
    """Raises DeployError as `read_baseline`, before anything else is done."""
    path = recipe.gate.baseline
    baseline = read_baseline(path)

    def run(context: Context) -> Metrics:
        result = judge(context["verify"], baseline, context.recipe.gate.margin)
        result.write(context.out)
        return {"verdict": result.status, "exit_code": EXIT_CODES[result.status]}

    config = {
        "margin": recipe.gate.margin,
        "baseline": None if path is None else sha256(path),
    }
    return Stage("gate", ("verify",), config, run)


def read_baseline(path: Path | None) -> Verdicts | None:
    """The verdicts accepted before, if a file of them is named.

    Raises:
        DeployError: 12 where there is no such file, 65 where it is not a baseline.
    """
    if path is None:
        return None
    if not path.is_file():
        raise DeployError(
            f"--baseline {path}: no such file; make one with `advprune gate RUN --baseline {path} "
            "--update-baseline --reason ...`",
            12,
        )
    return read(path)


def judge(verification: Artifact, baseline: Verdicts | None, margin: float) -> GateResult:
    """The verdict on the int8 engine of a run.

    Raises:
        DeployError: 12 where the baseline cannot be compared.
    """
    return evaluate(
        read(verification.file(verdict_file(GATED))),
        baseline=baseline,
        reference=read(verification.file(verdict_file(REFERENCE))),
        margin=margin,
        checks=[_health(verification)],
    )


def _health(verification: Artifact) -> Check:
    """An evaluation that cannot be believed leaves the verdict open, whatever it measured."""
    health = json.loads(verification.file(FINDINGS).read_text())["health"]
    invalid = [check for check in health if check["status"] == "INVALID"]
    if invalid:
        found = "; ".join(f"{check['id']} {check['what']}" for check in invalid)
        return Check("evaluation health", "INCONCLUSIVE", f"evaluation is invalid: {found}")
    suspect = dict.fromkeys(check["id"] for check in health if check["status"] == "SUSPECT")
    noted = f", suspect: {', '.join(suspect)}" if suspect else ""
    return Check("evaluation health", "PASS", f"evaluation: {len(health)} checks{noted}")
