"""What the slow tests of reliability did, as a table: how often, and with how many losses.

    make test ARGS="--junitxml=build/test.xml"
    make test-slow ARGS="--junitxml=build/test-slow.xml"
    python benchmarks/reliability.py build/test.xml build/test-slow.xml

A row is a file of tests; its first sentence is the promise. Tests say how often they tried through
`record_property("trials", n)`, and how many processes they killed through "kills"; of others, each
is one trial.
"""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# What the names of files of tests begin with that are about reliability.
FILES = (
    *("test_audit", "test_bad_input", "test_bit_flips", "test_bundle_hostile"),
    *("test_checkpoint_files", "test_every_method", "test_full_disk", "test_fuzz"),
    *("test_hostile_graphs", "test_killed", "test_locks", "test_mutants", "test_not_finite"),
    *("test_out_of_memory", "test_races", "test_sbom", "test_serving", "test_sigterm"),
    *("test_unsafe_calls",),
)
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


def rows(*reports: str) -> list[Row]:
    """The rows of JUnit reports, in the order of the promises' files."""
    found: dict[str, Row] = {}
    for case in (case for report in reports for case in _cases(report)):
        file = f"{_name(case)}.py"
        if not file.startswith(FILES):
            continue
        row = found.setdefault(file, Row(promise_of(TESTS / file), file))
        row.tests += 1
        row.seconds += float(case.attrib["time"])
        row.lost += any(child.tag in ("failure", "error") for child in case)
        row.skipped += any(child.tag == "skipped" for child in case)
        said = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        row.trials += int(said.get("trials", 1))
        row.kills += int(said.get("kills", 0))
    return [found[file] for file in sorted(found)]


def _cases(report: str) -> Iterable[ElementTree.Element]:
    return ElementTree.fromstring(report).iter("testcase")


def _name(case: ElementTree.Element) -> str:
    return case.attrib["classname"].rpartition("tests.")[2]


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
    sys.stdout.write(table(rows(*(Path(name).read_text() for name in sys.argv[1:]))))
