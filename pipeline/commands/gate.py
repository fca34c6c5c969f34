"""`advprune gate`: a run, or a verdict file of a device, held against what was accepted."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from advprune.errors import Refused
from deploy.errors import DeployError
from deploy.files import write_atomic
from deploy.gate import EXIT_CODES, demand_accepted, evaluate, read_accepted
from deploy.gate_baseline import update_baseline
from deploy.gate_outputs import (
    refusal_annotations,
    tell_github,
    to_junit,
    to_markdown,
    write_outputs,
)
from deploy.outcome import GateResult
from deploy.policies import Terms
from deploy.verdicts import Verdicts, read, verdict_file
from pipeline.stages.gate import GATED, judge
from pipeline.store import open_run


def gate(values: dict[str, Any]) -> int:
    try:
        return _gate(values)
    except DeployError as error:
        sys.stderr.writelines(f"{command}\n" for command in refusal_annotations(error, os.environ))
        raise


def _gate(values: dict[str, Any]) -> int:
    if values["update_baseline"]:
        return _update(values)
    if values["reason"] is not None or values["accept_regression"]:
        raise Refused("--reason and --accept-regression belong to --update-baseline")
    terms = Terms(
        tuple(values["policy"] or ()),
        values["margin"],
        values["floor"],
        values["ratio"],
        values["all_metrics"],
        tuple(values["hard"] or ()),
    )
    return _tell(_judged(values, terms), values)


def _update(values: dict[str, Any]) -> int:
    path, target = values["baseline"], values["run"]
    if path is None:
        raise Refused("--update-baseline needs the file to write: add --baseline FILE")
    if target.is_file():
        candidate = read(target)
    else:
        candidate = read(open_run(target)["verify"].file(verdict_file(GATED)))
    accept = values["accept_regression"]
    changed = update_baseline(path, candidate, values["reason"] or "", accept)
    if values["as_json"]:
        _print(json.dumps({"baseline": str(path), "changed": changed}))
    else:
        _print(changed)
    return 0


def _judged(values: dict[str, Any], terms: Terms) -> GateResult:
    """The verdict on a run, whose float engine and health count as well, or on a file alone."""
    target = values["run"]
    if target.is_file():
        return _judged_file(target, values, terms)
    if values["float_"] is not None:
        raise Refused("--float belongs to a verdict file; a run has verdicts of its float engine")
    verification = open_run(target)["verify"]
    baseline, release = _accepted(values)
    side_by_side: list[float] = []
    if values["previous"] is not None:
        if baseline is None:
            raise Refused("--previous is the engine of a baseline: add --baseline FILE")
        side_by_side = _side_by_side(target, values["previous"], baseline)
    return judge(verification, terms, baseline, release, side_by_side)


def _judged_file(file: Path, values: dict[str, Any], terms: Terms) -> GateResult:
    if values["previous"] is not None:
        raise Refused(f"--previous needs an engine to time, {file} is a verdict file; give a run")
    demand_accepted(terms, values["baseline"], values["release"])
    baseline, release = _accepted(values)
    reference = values["float_"] and read(values["float_"])
    return evaluate(read(file), baseline, release, reference, terms)


def _accepted(values: dict[str, Any]) -> tuple[Verdicts | None, Verdicts | None]:
    baseline = read_accepted("--baseline", values["baseline"])
    return baseline, read_accepted("--release", values["release"])


def _side_by_side(run: Path, previous: Path, baseline: Verdicts) -> list[float]:
    # Only here are engines run; the rest of the gate reads files, and needs no torch for that.
    from deploy.gate_speed import ratios
    from pipeline.commands.results import context_of
    from pipeline.stages.export import engines_of
    from pipeline.stages.verify import pixels_to_time

    context = context_of(run)
    engine = engines_of(context["export"].check())[GATED]
    return ratios(engine, previous, baseline, pixels_to_time(context))


def _tell(result: GateResult, values: dict[str, Any]) -> int:
    if values["junit"] is not None:
        write_atomic(values["junit"], to_junit(result))
    if values["markdown"] is not None:
        write_atomic(values["markdown"], to_markdown(result).encode())
    if values["out"] is not None:
        write_outputs(result, values["out"])
    commands = tell_github(result, os.environ)
    if values["as_json"]:
        _print(json.dumps(result.to_dict()))
        # Standard output is the document alone; GitHub reads commands from either stream.
        sys.stderr.writelines(f"{command}\n" for command in commands)
    else:
        _print(f"gate {result.status}", *(f"  {line}" for line in result.lines), *commands)
    return EXIT_CODES[result.status]


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
