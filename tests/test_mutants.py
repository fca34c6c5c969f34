"""Of the faults that are put where a fault would hurt, the tests notice at least four of five."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mutation.groups import read_groups
from mutation.report import GOAL

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Mutants of each module: as many as a core tries in about a minute.
SAMPLE = {"masks": 12, "allocate": 20, "gate": 5, "loader": 6, "attacks": 1}
SEED = 9


@pytest.mark.slow
@pytest.mark.parametrize("group", read_groups())
def test_faults_are_noticed(
    group: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    words = [group, "--sample", str(SAMPLE[group]), "--seed", str(SEED), "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "mutation", *words, "--out", str(tmp_path / "found.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())[group]
    assert found["mutants"] - found["equivalent"] >= 10
    assert found["share"] >= GOAL
    record_property("trials", found["mutants"])
