"""Whether the engine became larger or slower. Both only warn unless they are made hard.

A speed is told relative to the float engine in the same process, so that it carries from machine to
machine. Where both engines are at hand they are timed in turn instead, see `gate_speed`. Standard
library only, like the gate.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from deploy.outcome import Check, percent

GROWTH = 0.05  # of the size, that nobody minds
SLOWDOWN = 0.10  # of the time of one call


def cost_checks(
    here: Mapping[str, Any] | None,
    there: Mapping[str, Any] | None,
    ratios: Sequence[float] = (),
    hard: Collection[str] = (),
) -> list[Check]:
    """What can be said of size and speed.

    Args:
        here: `Verdicts.measured` of the engine.
        there: the same of the baseline.
        ratios: time of this engine over that of the baseline's, for each round of timing them in
            turn; decides in place of the recorded speeds.
        hard: what fails in place of warning, of "size" and "latency"; it is INCONCLUSIVE where
            nothing was measured, and not mentioned otherwise.
    """
    here, there = here or {}, there or {}
    found = {"size": _size(here, there), "latency": _latency(here, there, ratios)}
    checks: list[Check] = []
    for what, finding in found.items():
        name = f"{what} against baseline"
        if finding is not None:
            worse, message = finding
            status = "PASS" if not worse else "FAIL" if what in hard else "WARN"
            checks.append(Check(name, status, f"{name}: {message}"))
        elif what in hard:
            message = f"{name}: not measured in both; give a baseline that says it, verified anew"
            checks.append(Check(name, "INCONCLUSIVE", message))
    return checks


Finding = tuple[bool, str]  # worse than allowed, and in words


def _size(here: Mapping[str, Any], there: Mapping[str, Any]) -> Finding | None:
    both: Literal["compressed_bytes", "bytes"] = "compressed_bytes"
    if not here.get(both) or not there.get(both):
        both = "bytes"
    now, before = here.get(both), there.get(both)
    if not now or not before:
        return None
    unit = "bytes compressed" if both == "compressed_bytes" else "bytes"
    growth = now / before - 1
    # In whole bytes, so that a twentieth of 100 is 5.
    worse = now > round(before * (1 + GROWTH), 6)
    return worse, f"{before} → {now} {unit}, {growth:+.1%}, allowed {percent(GROWTH)}"


def _latency(
    here: Mapping[str, Any], there: Mapping[str, Any], ratios: Sequence[float]
) -> Finding | None:
    if ratios:
        middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
        seen = f"{middle:.2f} times its time, {least:.2f} to {most:.2f} over {len(ratios)} rounds"
        # One quick round is enough to doubt that the engine is slower at all.
        return middle > 1 + SLOWDOWN and least > 1, f"{seen}, timed in turn, {_allowed()}"
    speeds = [
        measured["p50_ms"] / measured["float_p50_ms"]
        for measured in (here, there)
        if measured.get("p50_ms") and measured.get("float_p50_ms")
    ]
    if len(speeds) < 2:
        return None
    now, before = speeds
    seen = f"{before:.3f} → {now:.3f} of the float engine's time, {now / before:.2f} times"
    places = "" if here["where"] == there["where"] else f" ({there['where']} → {here['where']})"
    return now / before > 1 + SLOWDOWN, f"{seen}{places}, {_allowed()}"


def _allowed() -> str:
    return f"allowed {1 + SLOWDOWN:.2f}"
