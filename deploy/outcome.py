"""What the gate found. `gate_outputs` writes it down. Standard library only, like the gate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from deploy.power import images_in_words
from deploy.statistics import mcnemar_exact, tango

Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Comparison:
    """One metric of two engines on the same images under the same attacks.

    Attributes:
        metric: "worst", "clean" or the name of an attack.
        against: what the engine is held against: "baseline", "release", or a precision.
        count: images.
        before: share of the images that the other engine gets right.
        after: share of the images that this engine gets right.
        worse: images that only the other engine gets right.
        better: images that only this engine gets right.
    """

    metric: str
    against: str
    count: int
    before: float
    after: float
    worse: int
    better: int

    @property
    def name(self) -> str:
        return f"{self.metric} against {self.against}"

    @property
    def drop(self) -> float:
        """Accuracy lost, a fraction; negative where it rose."""
        return (self.worse - self.better) / self.count

    @property
    def changed(self) -> float:
        """The share of the images whose verdict differs."""
        return (self.worse + self.better) / self.count

    @property
    def p(self) -> float:
        """How often chance alone makes it at least this much worse (exact, one-sided)."""
        return mcnemar_exact(self.worse, self.better)

    @property
    def bound(self) -> float:
        """What the drop does not exceed, with 95 % confidence (Tango 1998, one-sided)."""
        return tango(self.worse, self.better, self.count)[1]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drop": self.drop, "p": self.p, "bound": self.bound}


@dataclass(frozen=True)
class Check:
    """One thing that had to hold. `message` is one line for people; WARN decides nothing."""

    name: str
    status: Status | Literal["WARN"]
    message: str


@dataclass(frozen=True)
class GateResult:
    """The verdict and what it rests on.

    Attributes:
        policies: those that decided, and the value that each held.
        checks: what decided, and what only warned.
        rows: every comparison; the first one is the primary metric's.
        minimum_detectable_drop: the smallest drop that the test of the first row finds in four of
            five cases, where there is a row.
        images_to_ship: how many images it takes to ship in four of five cases at the drop and the
            share of changed verdicts that were seen, where that was asked and is open.
        measured: size and speed of "candidate" and "baseline", as far as they are known.
    """

    policies: Mapping[str, float]
    checks: tuple[Check, ...]
    rows: tuple[Comparison, ...] = ()
    minimum_detectable_drop: float | None = None
    images_to_ship: int | None = None
    measured: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def primary(self) -> Comparison | None:
        return self.rows[0] if self.rows else None

    @property
    def status(self) -> Status:
        """FAIL if any check failed; PASS if all passed and there was one; else INCONCLUSIVE."""
        found = {check.status for check in self.checks} - {"WARN"}
        if "FAIL" in found:
            return "FAIL"
        return "PASS" if found == {"PASS"} else "INCONCLUSIVE"

    @property
    def lines(self) -> list[str]:
        """The verdict in words, a line for each check."""
        lines = [
            f"warning: {check.message}" if check.status == "WARN" else check.message
            for check in self.checks
        ]
        if self.minimum_detectable_drop is not None:
            drop = points(self.minimum_detectable_drop)
            lines.append(f"the smallest drop that this test finds in four of five cases: {drop}")
        if self.images_to_ship is not None:
            images = images_in_words(self.images_to_ship)
            lines.append(
                f"to ship takes {images} in four of five cases, if drop and share of changed "
                "verdicts stay as they are"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The content of gate.json."""
        return {
            "schema": 2,
            "status": self.status,
            "policies": dict(self.policies),
            "primary": self.primary.to_dict() if self.primary else None,
            "minimum_detectable_drop": self.minimum_detectable_drop,
            "images_to_ship": self.images_to_ship,
            "checks": [asdict(check) for check in self.checks],
            "rows": [row.to_dict() for row in self.rows],
            "measured": {name: value and dict(value) for name, value in self.measured.items()},
            "lines": self.lines,
        }


def percent(share: float) -> str:
    """A share for people: 0.885 -> "88.5 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares for people, in percentage points: 0.01 -> "1.0 pp"."""
    return f"{100 * difference:.1f} pp"


def code(text: str) -> str:
    """A Markdown code span: nothing in it is markup, nor ends a table cell, nor mentions anyone."""
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
