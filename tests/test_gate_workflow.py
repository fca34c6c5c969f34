"""Promise: a baseline, an equal build, a weaker one, a release and a device end as the docs say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bare_python import make_bare_python

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_from_the_first_baseline_to_the_device(tmp_path: Path) -> None:
    bare = make_bare_python(tmp_path / "bare")
    (tmp_path / "work").mkdir()
    advprune = Path(sys.executable).with_name("advprune")
    done = subprocess.run(
        ["bash", ROOT / "tests" / "gate_workflow.sh", advprune, bare, ROOT],
        cwd=tmp_path / "work",
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
