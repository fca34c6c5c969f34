"""What the gate found, and how it is written down: JSON, Markdown and JUnit XML.

Standard library only, like the gate.
"""

import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from deploy.files import write_atomic
from deploy.statistics import mcnemar_exact

Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Comparison:
    """One metric of two engines on the same images under the same attacks.

    Attributes:
        metric: "worst", "clean" or the name of an attack.
        against: what the engine is held against: "baseline", or a precision.
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
    def drop(self) -> float:
        """Accuracy lost, a fraction; negative where it rose."""
        return (self.worse - self.better) / self.count

    @property
    def p(self) -> float:
        """How often chance alone makes it at least this much worse (exact, one-sided)."""
        return mcnemar_exact(self.worse, self.better)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drop": self.drop, "p": self.p}


@dataclass(frozen=True)
class Check:
    """One thing that had to hold. `message` is one line for people."""

    name: str
    status: Status
    message: str


@dataclass(frozen=True)
class GateResult:
    """The verdict and what it rests on.

    Attributes:
        margin: the drop that nobody minds, a fraction.
        checks: what decided.
        primary: the comparison that decided, where there was anything to compare with.
        minimum_detectable_drop: the smallest drop that its test finds in four of five cases.
        rows: every comparison, the primary one first; all others are for information.
    """

    margin: float
    checks: tuple[Check, ...]
    primary: Comparison | None
    minimum_detectable_drop: float | None
    rows: tuple[Comparison, ...]

    @property
    def status(self) -> Status:
        """FAIL if any check failed; PASS if all passed and there was one; else INCONCLUSIVE."""
        found = {check.status for check in self.checks}
        if "FAIL" in found:
            return "FAIL"
        return "PASS" if found == {"PASS"} else "INCONCLUSIVE"

    @property
    def lines(self) -> list[str]:
        """The verdict in words, a line for each check."""
        if not self.checks:
            return ["nothing was compared: there is neither a baseline nor a reference"]
        lines = [check.message for check in self.checks]
        if self.minimum_detectable_drop is not None:
            drop = points(self.minimum_detectable_drop)
            lines.append(f"the smallest drop that this test finds in four of five cases: {drop}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The content of gate.json."""
        return {
            "schema": 1,
            "status": self.status,
            "policy": "regress",
            "margin": self.margin,
            "primary": self.primary.to_dict() if self.primary else None,
            "minimum_detectable_drop": self.minimum_detectable_drop,
            "checks": [asdict(check) for check in self.checks],
            "rows": [row.to_dict() for row in self.rows],
            "lines": self.lines,
        }

    def to_markdown(self) -> str:
        """A summary for a CI job page."""
        lines = [f"### Gate: {self.status}", ""]
        lines += [f"- {escape(line, quote=False)}" for line in self.lines]
        if self.rows:
            lines += ["", "| metric | against | before | after | drop | worse | better | p |"]
            lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
        for row in self.rows:
            cells = (
                code(row.metric),
                code(row.against),
                percent(row.before),
                percent(row.after),
                points(row.drop),
                str(row.worse),
                str(row.better),
                f"{row.p:.2g}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def to_junit(self) -> bytes:
        """JUnit XML: a test case for each check; an inconclusive one is an error."""
        counts = {
            "tests": str(len(self.checks)),
            "failures": str(sum(check.status == "FAIL" for check in self.checks)),
            "errors": str(sum(check.status == "INCONCLUSIVE" for check in self.checks)),
        }
        suites = ElementTree.Element("testsuites", counts)
        suite = ElementTree.SubElement(suites, "testsuite", {"name": "gate", **counts})
        for check in self.checks:
            case = ElementTree.SubElement(suite, "testcase", classname="gate", name=check.name)
            if check.status != "PASS":
                kind = "failure" if check.status == "FAIL" else "error"
                ElementTree.SubElement(case, kind, message=check.message)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)

    def write(self, folder: Path) -> None:
        """Write gate.json, gate.md and junit.xml into an existing folder.

        Raises:
            DeployError: 73 or 74, a file cannot be created or written.
        """
        content = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        write_atomic(folder / "gate.json", content.encode())
        write_atomic(folder / "gate.md", self.to_markdown().encode())
        write_atomic(folder / "junit.xml", self.to_junit())


def percent(share: float) -> str:
    """A share for people: 0.885 -> "88.5 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares for people, in percentage points: 0.01 -> "1.0 pp"."""
    return f"{100 * difference:.1f} pp"


def code(text: str) -> str:
    """A Markdown code span: nothing in it is markup, nor ends a table cell, nor mentions anyone."""
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
