"""Whether a run of all tests reaches every branch that must be, told from coverage's JSON.

    pytest -n auto --cov --cov-branch --cov-report=json:build/coverage.json
    PYTHONPATH=tests python -m mutation.coverage_goal build/coverage.json

All lines and branches of what the groups name, nine of ten branches of everything.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mutation.groups import read_groups

OVERALL = 0.9


def failures(content: Mapping[str, Any], whole: Collection[str]) -> list[str]:
    """What is short of the goal, a line each.

    Args:
        content: of the JSON; measured with branches.
        whole: sources that must be reached everywhere.

    Raises:
        ValueError: branches were not measured.
    """
    if not content["meta"]["branch_coverage"]:
        raise ValueError("coverage: branches were not measured; add --cov-branch")
    found = []
    for path in whole:
        file = content["files"].get(path)
        if file is None:
            found.append(f"{path}: not measured")
            continue
        lines = [str(line) for line in file["missing_lines"]]
        lines += [f"{first}->{then}" for first, then in file["missing_branches"]]
        if lines:
            found.append(f"{path}: never reached {', '.join(lines)}")
    totals = content["totals"]
    share = totals["covered_branches"] / totals["num_branches"]
    if share < OVERALL:
        found.append(f"all together: {share:.1%} of the branches, below {OVERALL:.0%}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="coverage_goal", description=__doc__)
    parser.add_argument("report", type=Path, help="JSON of coverage")
    content = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    whole = [path for group in read_groups().values() for path in group.modules]
    found = failures(content, whole)
    sys.stdout.write("".join(f"coverage: {line}\n" for line in found or ["every goal is reached"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
