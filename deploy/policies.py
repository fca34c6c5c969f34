"""What a gate can ask of an engine: the policies, their rules, and the terms of one gate.

`regress` stops what got worse and is for pull requests. `ship` wants proof that nothing was lost
and is for releases. `floor` holds an absolute accuracy, `ratio` one relative to the float engine.
Standard library only, like the gate.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from deploy.errors import DeployError
from deploy.outcome import Check, Comparison, percent, points
from deploy.power import LEVEL
from deploy.statistics import clopper_pearson, holm, mcnemar_exact

HARD = ("size", "latency")  # what only warns unless it is named


def regress(row: Comparison, margin: float, p: float | None = None) -> Check:
    """FAIL when drop > margin and the one-sided exact McNemar p < 0.05.

    The margin alone would stop one sound change in eight at 500 images; the test alone would stop
    drops that nobody minds. INCONCLUSIVE where so few were right that no outcome could have failed.

    Args:
        p: in place of the comparison's own, where it is one of several.
    """
    p = row.p if p is None else p
    allowed = round(margin * row.count, 6)  # 0.29 * 100 is a little less than 29
    if _cannot_fail(row, allowed):
        message = f"{_seen(row)}: too few were right for any drop to fail"
        return Check(row.name, "INCONCLUSIVE", message)
    if row.worse - row.better <= allowed:
        message = f"{_seen(row)}: drop {points(row.drop)} ≤ {points(margin)}"
        return Check(row.name, "PASS", message)
    chance = f"drop {points(row.drop)} > {points(margin)}, p = {p:.2g}"
    if p < LEVEL:
        return Check(row.name, "FAIL", f"{_seen(row)}: {chance} < {LEVEL}")
    return Check(row.name, "PASS", f"{_seen(row)}: {chance}, which chance explains")


def ship(row: Comparison, margin: float) -> Check:
    """PASS only if Tango's one-sided 95 % upper bound of the drop is below the margin.

    FAIL where `regress` fails at this margin: what stops a pull request stops a release too.
    INCONCLUSIVE otherwise; `images_to_ship` tells how many images would decide.
    """
    name = f"{row.name} (ship)"
    stopped = regress(row, margin)
    if stopped.status != "PASS":
        return Check(name, stopped.status, stopped.message)
    bound = f"{_seen(row)}: drop {points(row.drop)}, at most {points(row.bound)} (95 %)"
    if row.bound < margin:
        return Check(name, "PASS", f"{bound} < {points(margin)}")
    return Check(name, "INCONCLUSIVE", f"{bound}, not surely below {points(margin)}")


def floor(correct: Sequence[bool], least: float) -> Check:
    """PASS where the one-sided 95 % Clopper-Pearson lower bound of the accuracy reaches the floor.

    FAIL where the upper one stays below it; INCONCLUSIVE between.
    """
    low, high = clopper_pearson(sum(correct), len(correct), 1 - 2 * LEVEL)
    seen = f"worst case {percent(sum(correct) / len(correct))} of {len(correct)} images"
    name, asked = "worst above the floor", f"floor {percent(least)}"
    if low >= least:
        return Check(name, "PASS", f"{seen}: at least {percent(low)} (95 %), {asked}")
    if high < least:
        return Check(name, "FAIL", f"{seen}: at most {percent(high)} (95 %), {asked}")
    between = f"between {percent(low)} and {percent(high)} (95 % each)"
    return Check(name, "INCONCLUSIVE", f"{seen}: {between}, {asked}; add images")


def ratio(row: Comparison, least: float) -> Check:
    """PASS where the accuracy is at least this share of the float engine's, as in MLPerf.

    Point values without an interval; INCONCLUSIVE where the float engine is never right.
    """
    name = f"worst as a share of {row.against}"
    if row.before == 0:
        return Check(name, "INCONCLUSIVE", f"{_seen(row)}: nothing to have a share of")
    share = row.after / row.before
    # Counts of images, so that 99 of 100 is 0.99 whatever floats make of it.
    passed = row.after * row.count >= round(least * row.before * row.count, 6)
    sign, status = ("≥", "PASS") if passed else ("<", "FAIL")
    message = f"{_seen(row)}: {share:.4f} {sign} {least:g} of {row.against}, point values"
    return Check(name, status, message)


def secondary(rows: Sequence[Comparison], margin: float) -> list[Check]:
    """`regress` for all metrics but the primary, with p corrected by Holm over them."""
    adjusted = holm([row.p for row in rows])
    return [regress(row, margin, p) for row, p in zip(rows, adjusted, strict=True)]


class Policy(NamedTuple):
    """One entry of the registry.

    Attributes:
        option: that gives its value.
        value: where none is given; None if one must be.
        judges: "pairs", the engine against what was accepted; "float", against the float engine;
            "engine", its verdicts alone.
        rule: of what it judges and the value.
    """

    option: Literal["margin", "floor", "ratio"]
    value: float | None
    judges: Literal["pairs", "float", "engine"]
    rule: Callable[[Any, float], Check]


POLICIES: Mapping[str, Policy] = {
    "regress": Policy("margin", 0.01, "pairs", regress),
    "ship": Policy("margin", 0.02, "pairs", ship),
    "floor": Policy("floor", None, "engine", floor),
    "ratio": Policy("ratio", 0.99, "float", ratio),
}
DEFAULT = "regress"


@dataclass(frozen=True)
class Terms:
    """What one gate asks.

    Attributes:
        policies: names of `POLICIES`; none is `regress`. A floor or a ratio adds its policy.
        margin: the drop that nobody minds, in [0, 1); None is each policy's own.
        floor: the accuracy to be held, in (0, 1).
        ratio: the share of the float engine's accuracy to be held, in (0, 1].
        all_metrics: the secondary metrics decide as well.
        hard: of `HARD`, what fails instead of warning.

    Raises:
        DeployError: 2, an unknown name, a value out of range, or one that is missing.
    """

    policies: tuple[str, ...] = ()
    margin: float | None = None
    floor: float | None = None
    ratio: float | None = None
    all_metrics: bool = False
    hard: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.policies:
            _known("policy", name, POLICIES)
        for name in self.hard:
            _known("hard", name, HARD)
        _within("margin", self.margin, "[0, 1)", lambda x: 0 <= x < 1)
        _within("floor", self.floor, "(0, 1)", lambda x: 0 < x < 1)
        _within("ratio", self.ratio, "(0, 1]", lambda x: 0 < x <= 1)
        if "floor" in self.policies and self.floor is None:
            raise DeployError("gate: policy floor needs its value; add --floor, e.g. 0.7", 2)
        if self.all_metrics and not self.paired:
            raise DeployError("gate: --all-metrics compares; add --policy regress or ship", 2)

    @property
    def values(self) -> dict[str, float]:
        """Each policy that decides, and what it holds."""
        given = {"margin": self.margin, "floor": self.floor, "ratio": self.ratio}
        added = [name for name in ("floor", "ratio") if given[name] is not None]
        found: dict[str, float] = {}
        for name in (*(self.policies or (DEFAULT,)), *added):
            own, asked = POLICIES[name].value, given[POLICIES[name].option]
            value = own if asked is None else asked
            assert value is not None  # `__post_init__` has refused a floor without one
            found[name] = value
        return found

    @property
    def paired(self) -> dict[str, float]:
        """Those that compare with what was accepted, and their margins."""
        return {k: v for k, v in self.values.items() if POLICIES[k].judges == "pairs"}


def _known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        raise DeployError(f"gate: {what} {name!r} is not known; {hint}", 2)


def _within(name: str, value: float | None, range_: str, test: Callable[[float], bool]) -> None:
    if value is not None and not test(value):
        hint = f"; did you mean {value / 100:g}?" if 1 <= value <= 100 else ""
        if math.isnan(value) or not hint:
            hint = "; give a fraction"
        raise DeployError(f"gate: {name} must lie in {range_}, got {value:g}{hint}", 2)


def _cannot_fail(row: Comparison, allowed: float) -> bool:
    right_before = round(row.before * row.count)
    return right_before <= allowed or mcnemar_exact(right_before, 0) >= LEVEL


def _seen(row: Comparison) -> str:
    return (
        f"{row.name}: {percent(row.before)} → {percent(row.after)} of "
        f"{row.count} images, {row.worse} worse, {row.better} better"
    )
