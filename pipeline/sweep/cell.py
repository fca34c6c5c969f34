"""One cell at work: `advprune run` in a process of its own, whose death takes nobody along."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stopping import LAST, Terminated

VERDICTS = (0, 10, 11, 12)  # exit codes of a run that came to its end
BUSY = 75
# A traceback, memory, storage; what is wrong with the input never mends itself.
_MAY_PASS = (1, 71, 73, 74)


@dataclass(frozen=True)
class Ended:
    """How a cell ended: its exit code, what it said, and its report where it has one."""

    code: int
    error: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.code in VERDICTS

    @property
    def may_pass(self) -> bool:
        """Whether trying again could help."""
        return self.code < 0 or self.code > 128 or self.code in _MAY_PASS


class Processes:
    """The cells at work on this machine, so that all can be asked to stop."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, recipe: Path, words: Sequence[str]) -> Ended:
        """Carry out a recipe, as `begin`; called from any thread."""
        with self._lock:
            if self._stopped:
                return Ended(Terminated.exit_code, "not begun")
            process = begin(recipe, words)
            self._running.add(process)
        try:
            said, _ = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        return read(process.returncode, said)

    def stop(self) -> None:
        """Ask every cell to stop where nothing is lost, and wait; begin no other."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(timeout=2 * LAST)


def begin(
    recipe: Path, words: Sequence[str], folder: Path | None = None, by: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """The process of a cell, whose output `read` takes.

    Args:
        words: of `advprune run`, beside the recipe.
        folder: that it works in; this process's own if None.
        by: a command that becomes the one it is given.
    """
    run = [sys.executable, "-m", "pipeline", "run", "--recipe", str(recipe), *words, "--json"]
    return subprocess.Popen(
        [*by, *run],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # The terminal's Ctrl-C is for the sweep, which asks its cells to stop.
        start_new_session=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def read(code: int, said: str) -> Ended:
    """What a process that ended with this code and these words came to."""
    try:
        document = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        document = {}
    if code in VERDICTS and "verdict" in document:
        return Ended(code, report=document)
    if code in VERDICTS:
        return Ended(1, f"ended with {code} and without a report")
    if code < 0:
        return Ended(code, f"killed by {signal.Signals(-code).name}")
    return Ended(code, document.get("error", "ended in a traceback; run its recipe to see it"))
