"""Stage 8: may this engine ship? Against a baseline where there is one, else against its float."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.gate import EXIT_CODES, evaluate, read_accepted
from deploy.gate_outputs import write_outputs
from deploy.outcome import GateResult
from deploy.policies import Terms
from deploy.verdicts import Verdicts, read, verdict_file
from pipeline.files import sha256
from pipeline.stage import Artifact, Context, Metrics, Stage

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

GATED = "int8"
REFERENCE = "fp32"


def stage(recipe: "Recipe") -> Stage:
    """Raises DeployError as `Terms` and `read_accepted`, before anything else is done."""
    asked = recipe.gate
    terms = asked.terms()
    baseline = read_accepted("--baseline", asked.baseline)
    release = read_accepted("--release", asked.release)

    def run(context: Context) -> Metrics:
        result = judge(context["verify"], terms, baseline, release)
        write_outputs(result, context.out)
        return {"verdict": result.status, "exit_code": EXIT_CODES[result.status]}

    config = {
        "policies": terms.values,
        "all_metrics": terms.all_metrics,
        "hard": sorted(terms.hard),
        "baseline": None if asked.baseline is None else sha256(asked.baseline),
        "release": None if asked.release is None else sha256(asked.release),
    }
    return Stage("gate", ("verify",), config, run, version=2)


def judge(
    verification: Artifact,
    terms: Terms,
    baseline: Verdicts | None = None,
    release: Verdicts | None = None,
    ratios: Sequence[float] = (),
) -> GateResult:
    """The verdict on the int8 engine of a run; see `evaluate`.

    Raises:
        DeployError: 12 where the baseline or the release cannot be compared.
    """
    return evaluate(
        read(verification.file(verdict_file(GATED))),
        baseline=baseline,
        release=release,
        reference=read(verification.file(verdict_file(REFERENCE))),
        terms=terms,
        ratios=ratios,
    )
