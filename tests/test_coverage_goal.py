"""A branch that no test takes is named, and a report that says nothing of branches is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from mutation.coverage_goal import failures

REPORT: dict[str, Any] = {
    "meta": {"branch_coverage": True},
    "files": {
        "a.py": {"missing_lines": [], "missing_branches": []},
        "b.py": {"missing_lines": [7], "missing_branches": [[3, 5]]},
    },
    "totals": {"covered_branches": 90, "num_branches": 100},
}


def test_nine_of_ten_branches_and_whole_modules_are_enough() -> None:
    assert failures(REPORT, ["a.py"]) == []


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a line": (lambda r: r["files"]["a.py"]["missing_lines"].append(4), "a.py: never reached 4"),
    "a branch": (
        lambda r: r["files"]["a.py"]["missing_branches"].append([4, -1]),
        "a.py: never reached 4->-1",
    ),
    "a module": (lambda r: r["files"].pop("a.py"), "a.py: not measured"),
    "a branch elsewhere": (
        lambda r: r["totals"].update(covered_branches=89),
        "all together: 89.0% of the branches, below 90%",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_not_reached_is_named(what: str) -> None:
    change, said = CHANGES[what]
    report = copy.deepcopy(REPORT)
    change(report)
    assert failures(report, ["a.py"]) == [said]


def test_lines_alone_are_not_enough() -> None:
    with pytest.raises(ValueError, match="branches were not measured"):
        failures({**REPORT, "meta": {"branch_coverage": False}}, ["a.py"])
