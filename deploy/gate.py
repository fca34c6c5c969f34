"""The gate: is the engine that would ship worse than what was accepted before, image by image?

    python -m deploy.gate --baseline baselines/digits.json verdicts.int8.json

One metric decides, the images that are right clean and under every attack; `policies` says by which
rules, `gate_costs` what is said of size and speed beside it. Standard library only: a CI job runs
this and installs nothing.

Exit codes: 0 pass, 10 fail, 11 inconclusive, 12 baseline missing or not comparable, 2 usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from deploy.errors import DeployError
from deploy.gate_baseline import update_baseline
from deploy.gate_costs import cost_checks
from deploy.gate_health import health_checks
from deploy.gate_outputs import refusal_annotations, tell_github, write_outputs
from deploy.gate_pairs import PRIMARY, compare, drop_from_float
from deploy.outcome import Check, Comparison, GateResult, Status, percent
from deploy.policies import HARD, POLICIES, Terms, secondary, ship
from deploy.power import images_to_ship, minimum_detectable_drop
from deploy.verdicts import Verdicts, read

EXIT_CODES: dict[Status, int] = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}


def evaluate(
    candidate: Verdicts,
    baseline: Verdicts | None = None,
    release: Verdicts | None = None,
    reference: Verdicts | None = None,
    terms: Terms | None = None,
    ratios: Sequence[float] = (),
) -> GateResult:
    """The verdict on one engine.

    Args:
        baseline: what was accepted last.
        release: what was released last; many small drops since then add up against it.
        reference: the float engine of the same run; what is paired decides against it where there
            is neither a baseline nor a release, and a ratio is one to it.
        terms: what is asked; `regress` if nothing is said.
        ratios: of the time of one call, see `cost_checks`.

    Raises:
        DeployError: 12, the baseline, release or reference cannot be compared; 2, a ratio without
            a reference.
    """
    terms = terms or Terms()
    accepted = {"baseline": baseline, "release": release}
    pairs = [compare(candidate, other, name) for name, other in accepted.items() if other]
    from_float = drop_from_float(candidate, reference) if reference else []
    deciding = pairs or ([from_float] if from_float else [])
    costs = cost_checks(
        candidate.measured, baseline.measured if baseline else None, ratios, terms.hard
    )
    rows = [row for group in (*pairs, from_float) for row in group]
    asked = _asked(candidate, deciding, from_float, terms)
    found = [*asked, *costs, *health_checks(candidate)]
    measured = {"candidate": candidate.measured, "baseline": baseline and baseline.measured}
    detectable = minimum_detectable_drop(rows[0].count, rows[0].changed) if rows else None
    return GateResult(
        terms.values, tuple(found), tuple(rows), detectable, _wanting(deciding, terms), measured
    )


def _asked(
    candidate: Verdicts,
    deciding: Sequence[Sequence[Comparison]],
    from_float: Sequence[Comparison],
    terms: Terms,
) -> list[Check]:
    """A check for each policy, and for each of the others that a paired one compares with."""
    found: list[Check] = []
    for name, value in terms.values.items():
        policy = POLICIES[name]
        match policy.judges:
            case "pairs":
                found += [policy.rule(group[0], value) for group in deciding]
            case "engine":
                found.append(policy.rule(candidate.flags[PRIMARY], value))
            case "float":  # pragma: no branch
                if not from_float:
                    raise DeployError(
                        f"gate: policy {name} needs the float engine's verdicts; add --float FILE",
                        2,
                    )
                found.append(policy.rule(from_float[0], value))
    if terms.paired and not deciding:
        message = "nothing was compared: there is neither a baseline nor a reference"
        found.append(Check(PRIMARY, "INCONCLUSIVE", message))
    if terms.all_metrics:
        margin = min(terms.paired.values())
        found += [check for group in deciding for check in secondary(group[1:], margin)]
    return found


def _wanting(deciding: Sequence[Sequence[Comparison]], terms: Terms) -> int | None:
    """How many images it takes to ship, where that is asked and open and the drop allows it."""
    margin = terms.paired.get("ship", 0.0)
    wanted = [
        images_to_ship(row.changed, margin, max(0.0, row.drop))
        for row in (group[0] for group in deciding)
        if max(0.0, row.drop) < margin and ship(row, margin).status == "INCONCLUSIVE"
    ]
    return max(wanted, default=None)


def demand_accepted(terms: Terms, *accepted: Path | None) -> None:
    """Raises DeployError 2 where a policy compares and there is nothing to compare with."""
    if terms.paired and not any(accepted):
        raise DeployError(
            f"gate: policy {' and '.join(terms.paired)} compares; add --baseline FILE, or name "
            "another --policy",
            2,
        )


def read_accepted(option: str, path: Path | None) -> Verdicts | None:
    """The verdicts accepted before, if a file of them is named.

    Raises:
        DeployError: 12 where there is no such file, 65 where it is not a baseline.
    """
    if path is None:
        return None
    if not path.is_file():
        raise DeployError(
            f"{option} {path}: no such file; make one with `advprune gate RUN --baseline {path} "
            "--update-baseline --reason ...`",
            12,
        )
    return read(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.update_baseline and (options.reason or options.accept_regression):
        parser.error("--reason and --accept-regression belong to --update-baseline")
    if options.update_baseline and options.baseline is None:
        parser.error("--update-baseline needs the file to write: add --baseline FILE")
    try:
        return _update(options) if options.update_baseline else _judge(options)
    except DeployError as error:
        _say(sys.stdout, *refusal_annotations(error, os.environ))
        _say(sys.stderr, str(error))
        return error.exit_code


def _update(options: argparse.Namespace) -> int:
    candidate = read(options.verdicts)
    accept = options.accept_regression
    _say(sys.stdout, update_baseline(options.baseline, candidate, options.reason, accept))
    return 0


def _judge(options: argparse.Namespace) -> int:
    terms = Terms(
        tuple(options.policy),
        options.margin,
        options.floor,
        options.ratio,
        options.all_metrics,
        tuple(options.hard),
    )
    demand_accepted(terms, options.baseline, options.release)
    result = evaluate(
        read(options.verdicts),
        baseline=read_accepted("--baseline", options.baseline),
        release=read_accepted("--release", options.release),
        reference=options.float and read(options.float),
        terms=terms,
    )
    if options.out is not None:
        write_outputs(result, options.out)
    commands = tell_github(result, os.environ)
    _say(sys.stdout, f"gate {result.status}", *result.lines)
    for row in result.rows:
        if row.metric != PRIMARY:
            drop = f"{percent(row.before)} → {percent(row.after)}"
            role = "" if terms.all_metrics else ", for information"
            _say(sys.stdout, f"  {row.name}: {drop} (p = {row.p:.2g}{role})")
    _say(sys.stdout, *commands)
    return EXIT_CODES[result.status]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy.gate", description=(__doc__ or "").split("\n")[0])

    def add(name: str, help: str, **more: object) -> None:
        parser.add_argument(name, help=help, **more)  # pyright: ignore[reportArgumentType]

    file = {"type": Path, "metavar": "FILE"}
    share = {"type": float, "metavar": "X"}
    several = {"action": "append", "default": [], "metavar": "NAME"}
    add("verdicts", "of the engine to judge", type=Path, metavar="VERDICTS")
    add("--baseline", "what was accepted last", **file)
    add("--release", "what was released last: drops add up against it", **file)
    add("--float", "verdicts of the float engine of the same run, for a ratio", **file)
    add("--policy", f"{', '.join(POLICIES)}; repeatable (regress)", **several)
    add("--margin", "drop that nobody minds (regress 0.01, ship 0.02)", **share)
    add("--floor", "accuracy to be held; adds the policy", **share)
    add("--ratio", "share of the float accuracy to be held; adds the policy", **share)
    add("--all-metrics", "let the other metrics decide as well", action="store_true")
    add("--hard", f"{' or '.join(HARD)}: fail where it would only warn; repeatable", **several)
    add("--out", "folder for gate.json, gate.md, junit.xml and metrics.txt", type=Path)
    add("--update-baseline", "accept VERDICTS as the new baseline", action="store_true")
    add("--reason", "why the new baseline is right", default="")
    add("--accept-regression", "though it is worse than the old one", action="store_true")
    return parser


def _say(stream: TextIO, *lines: str) -> None:
    # A CI log that is not UTF-8 must not turn a verdict into a crash.
    encoding = stream.encoding or "utf-8"
    for line in lines:
        stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")


if __name__ == "__main__":
    sys.exit(main())
