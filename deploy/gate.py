"""The gate: is the engine that would ship worse than what was accepted before, image by image?

    python -m deploy.gate --baseline baselines/digits.json verdicts.int8.json

The policy is `regress`: one metric decides, the images that are right clean and under every attack,
and it fails when the drop is above the margin and chance does not explain it. The margin alone
would stop one sound change in eight at 500 images; the test alone would stop drops that nobody
minds. Standard library only: a CI job runs this and installs nothing.

Exit codes: 0 pass, 10 fail, 11 inconclusive, 12 baseline missing or not comparable, 2 usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from deploy.errors import DeployError
from deploy.outcome import Check, Comparison, GateResult, Status, percent, points
from deploy.statistics import mcnemar_exact, minimum_detectable_drop
from deploy.verdicts import Verdicts, canonical, protocol_hash, read, write

EXIT_CODES: dict[Status, int] = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}
MARGIN = 0.01
LEVEL = 0.05
PRIMARY = "worst"


def compare(candidate: Verdicts, other: Verdicts, against: str) -> list[Comparison]:
    """Pair the verdicts of two engines: "worst" first, then "clean" and every attack.

    Raises:
        DeployError: 12, the protocols differ; the message names the first differences.
    """
    if protocol_hash(candidate.protocol) != protocol_hash(other.protocol):
        differing = _differences(candidate.protocol, other.protocol)
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DeployError(
            f"gate: cannot compare with {against}: {', '.join(differing[:3])}{more} differ", 12
        )
    if candidate.count != other.count:
        raise DeployError(
            f"gate: cannot compare with {against}: {other.count} images there, "
            f"{candidate.count} here",
            12,
        )
    flags, others = candidate.flags, other.flags
    return [
        _pair(name, against, flags[name], others[name]) for name in (PRIMARY, *candidate.correct)
    ]


def drop_from_float(int8: Verdicts, fp32: Verdicts) -> list[Comparison]:
    """The same comparison between two engines of one run: what quantisation cost.

    Raises:
        DeployError: 12, the protocols differ, or both verdicts are of the same file.
    """
    if int8.artefact["sha256"] == fp32.artefact["sha256"]:
        raise DeployError(
            f"gate: both verdicts are of {int8.artefact['file']}; pass those of two engines", 12
        )
    return compare(int8, fp32, fp32.artefact["precision"])


def regress(comparison: Comparison, margin: float) -> Check:
    """The policy for pull requests: FAIL when drop > margin and p < 0.05.

    INCONCLUSIVE where so few images were right before that no outcome could have failed.
    """
    name = f"{comparison.metric} against {comparison.against}"
    measured = (
        f"{name}: {percent(comparison.before)} → {percent(comparison.after)} of "
        f"{comparison.count} images, {comparison.worse} worse, {comparison.better} better"
    )
    right_before = round(comparison.before * comparison.count)
    allowed = round(margin * comparison.count, 6)  # 0.29 * 100 is a little less than 29
    if right_before <= allowed or mcnemar_exact(right_before, 0) >= LEVEL:
        return Check(name, "INCONCLUSIVE", f"{measured}: too few were right for any drop to fail")
    if comparison.worse - comparison.better <= allowed:
        return Check(name, "PASS", f"{measured}: drop {points(comparison.drop)} ≤ {points(margin)}")
    chance = f"drop {points(comparison.drop)} > {points(margin)}, p = {comparison.p:.2g}"
    if comparison.p < LEVEL:
        return Check(name, "FAIL", f"{measured}: {chance} < {LEVEL}")
    return Check(name, "PASS", f"{measured}: {chance}, which chance explains")


def evaluate(
    candidate: Verdicts,
    baseline: Verdicts | None = None,
    reference: Verdicts | None = None,
    margin: float = MARGIN,
    checks: Sequence[Check] = (),
) -> GateResult:
    """The verdict on one engine.

    Args:
        baseline: what was accepted before; it decides where there is one.
        reference: the float engine of the same run; it decides where there is no baseline.
        margin: the drop that nobody minds, in [0, 1).
        checks: what else must hold, decided by the caller.

    Raises:
        DeployError: 12, the baseline or reference cannot be compared; 2, margin out of range.
    """
    if not 0 <= margin < 1:
        hint = f"; did you mean {margin / 100:g}?" if 1 <= margin < 100 else ""
        raise DeployError(f"gate: margin must lie in [0, 1), got {margin:g}{hint}", 2)
    rows: list[Comparison] = []
    if baseline is not None:
        precisions = candidate.artefact["precision"], baseline.artefact["precision"]
        if precisions[0] != precisions[1]:
            raise DeployError(
                "gate: cannot compare with baseline: precision "
                f"({precisions[1]} there, {precisions[0]} here) differs",
                12,
            )
        rows += compare(candidate, baseline, "baseline")
    if reference is not None:
        rows += drop_from_float(candidate, reference)
    primary = rows[0] if rows else None
    detectable = None
    if primary is not None:
        checks = [regress(primary, margin), *checks]
        changed = (primary.worse + primary.better) / primary.count
        detectable = minimum_detectable_drop(primary.count, changed, LEVEL)
    return GateResult(margin, tuple(checks), primary, detectable, tuple(rows))


def update_baseline(path: Path, candidate: Verdicts, reason: str) -> str:
    """Accept an engine: its verdicts become the baseline, with the reason and what was before.

    Returns:
        A line that says what changed.

    Raises:
        DeployError: 2, no reason, or the environment says CI: a build must not accept itself;
            65, the baseline there is not one; 73 or 74, it cannot be created or written.
    """
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise DeployError("gate: CI is set; update the baseline on a desk and review the diff", 2)
    if not reason.strip():
        raise DeployError('gate: a new baseline needs a reason; add --reason "..."', 2)
    previous, before = None, "none"
    if path.exists():
        old = read(path)
        previous = {
            "artefact": old.artefact,
            "protocol_hash": protocol_hash(old.protocol),
            "accuracy": old.accuracy(),
        }
        before = percent(previous["accuracy"][PRIMARY])
    write(path, replace(candidate, reason=reason.strip(), previous=previous))
    return f"{path}: {PRIMARY} {before} → {percent(candidate.accuracy()[PRIMARY])}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="deploy.gate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verdicts", type=Path, metavar="VERDICTS", help="of the engine to judge")
    parser.add_argument("--baseline", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help="drop that nobody minds (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write gate.json, gate.md and junit.xml here"
    )
    parser.add_argument(
        "--update-baseline", action="store_true", help="accept VERDICTS as the new baseline"
    )
    parser.add_argument("--reason", default="", help="why the new baseline is right")
    options = parser.parse_args(arguments)
    if options.reason and not options.update_baseline:
        parser.error("--reason belongs to --update-baseline")
    try:
        candidate = read(options.verdicts)
        if options.update_baseline:
            _say(sys.stdout, update_baseline(options.baseline, candidate, options.reason))
            return 0
        if not options.baseline.exists():
            raise DeployError(
                f"gate: {options.baseline} does not exist; create it with --update-baseline", 12
            )
        result = evaluate(candidate, baseline=read(options.baseline), margin=options.margin)
        if options.out is not None:
            result.write(options.out)
    except DeployError as error:
        _say(sys.stderr, str(error))
        return error.exit_code
    _say(sys.stdout, "\n".join([f"gate {result.status}", *result.lines]))
    for row in result.rows[1:]:
        drop = f"{percent(row.before)} → {percent(row.after)}"
        _say(sys.stdout, f"  {row.metric}: {drop} (p = {row.p:.2g}, for information)")
    return EXIT_CODES[result.status]


def _say(stream: TextIO, text: str) -> None:
    # A CI log that is not UTF-8 must not turn a verdict into a crash.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def _differences(candidate: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The settings in which two protocols differ, each with both values."""
    here, there = _flat(candidate), _flat(other)
    return [
        f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
        for key in sorted(here | there)
        if (key in here) != (key in there) or canonical(here[key]) != canonical(there[key])
    ]


def _flat(protocol: dict[str, Any]) -> dict[str, object]:
    """Every setting of a protocol by its path; attacks by their name, and their order."""
    flat: dict[str, object] = {}
    for key, value in protocol.items():
        if key == "attacks":
            flat[key] = [attack["name"] for attack in value]
            for attack in value:
                path = f"{key}.{attack['name']}"
                flat |= {f"{path}.{name}": x for name, x in attack.items() if name != "name"}
        elif isinstance(value, dict):
            flat |= {f"{key}.{name}": x for name, x in value.items()}
        else:
            flat[key] = value
    return flat


def _pair(metric: str, against: str, here: list[bool], there: list[bool]) -> Comparison:
    return Comparison(
        metric,
        against,
        count=len(here),
        before=sum(there) / len(there),
        after=sum(here) / len(here),
        worse=sum(b and not a for a, b in zip(here, there, strict=True)),
        better=sum(a and not b for a, b in zip(here, there, strict=True)),
    )


if __name__ == "__main__":
    sys.exit(main())
