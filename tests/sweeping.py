"""Cells without training: grids, reports, and a Python that is what a script says."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.sweep.cell import Ended
from pipeline.sweep.grid import Cell, axes, cells

REPORT = {
    "run": "digits_run",
    "verdict": {"status": "PASS"},
    "engines": [{"name": "int8", "clean": {"value": 0.9}, "worst": {"value": 0.5}}],
}
DONE = Ended(0, report=REPORT)
# What stops as a run does, and says when it is up; {up} is a file.
STOPPING = (
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "open({up!r}, 'w').close()\ntime.sleep(60)"
)


def grid_of(*texts: str, seeds: int | None = None, **flags: Any) -> list[Cell]:
    return cells(axes(texts, seeds), flags, None, [], threads=1)


def wait_for(there: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def program(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python is what `text` says, but for `-c` and what submitit starts, which are Python's."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, runpy, signal, sys, time\n"
        "if sys.argv[1:2] == ['-c']:\n"
        "    said, sys.argv[1:3] = sys.argv[2], []\n"
        "    exec(said)\n"
        "if 'submitit.core._submit' in sys.argv:\n"
        "    sys.executable, sys.argv = __file__, ['submit', sys.argv[-1]]\n"
        "    runpy.run_module('submitit.core._submit', run_name='__main__')\n"
        "    sys.exit()\n"
        f"{text}\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
