"""What the slow tests of reliability did, as a table: how often, and with how many losses.

    make test-slow ARGS="--junitxml=build/test-slow.xml"
    python benchmarks/reliability.py build/test-slow.xml

A row is a file of tests; its first sentence is the promise. Tests say how often they tried through
`record_property("trials", n)`, and how many processes they killed through "kills".
"""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"


@dataclass
class Row:
    """One promise.

    Attributes:
        trials: attempts to break it.
        kills: processes that were killed for it.
        lost: tests that failed.
    """

    promise: str
    file: str
    tests: int = 0
    trials: int = 0
    kills: int = 0
    lost: int = 0
    skipped: int = 0
    seconds: float = 0.0


def rows(report: str) -> list[Row]:
    """The rows of a JUnit report, in the order of the promises' files.

    Only files count in which a test says how often it tried.
    """
    found: dict[str, Row] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        file = case.attrib["classname"].replace("tests.", "", 1).replace(".", "/") + ".py"
        row = found.setdefault(file, Row(promise_of(TESTS / file), file))
        row.tests += 1
        row.seconds += float(case.attrib["time"])
        row.lost += any(child.tag in ("failure", "error") for child in case)
        row.skipped += any(child.tag == "skipped" for child in case)
        for said in case.iter("property"):
            if said.attrib["name"] in ("trials", "kills"):
                name, value = said.attrib["name"], int(said.attrib["value"])
                setattr(row, name, getattr(row, name) + value)
    return [found[file] for file in sorted(found) if found[file].trials]


def promise_of(path: Path) -> str:
    """The first sentence of a file of tests."""
    text = ast.get_docstring(ast.parse(path.read_text())) or path.stem
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def table(found: Iterable[Row]) -> str:
    """Markdown."""
    lines = [
        "| promise | file | tests | trials | kills | losses | s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        skipped = f" ({row.skipped} skipped)" if row.skipped else ""
        lines.append(
            f"| {row.promise} | `{row.file}` | {row.tests}{skipped} | {row.trials:,} | "
            f"{row.kills:,} | {row.lost} | {row.seconds:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(rows(Path(sys.argv[1]).read_text())))
