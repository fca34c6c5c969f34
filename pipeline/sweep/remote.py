"""What an engine calls where a cell is to run, perhaps on another machine: plain values alone."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from advprune.files import write
from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import begin, read
from pipeline.sweep.grid import Cell

LOST = 1  # exit code of a cell whose machine or worker died: it may pass
_LOOK = 1.0  # seconds after which Ray's request to stop is seen, which wakes nobody
# Has Linux ask a run to stop when its worker is gone: the engine counts its cores and GPU as free.
_BOUND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.argv[1], sys.argv[1:])
"""
_ASKING = (signal.SIGTERM, signal.SIGUSR2)  # the second is SLURM's warning that time runs out


def arguments(cell: Cell, terms: Terms) -> tuple[str, str, list[str], str]:
    """What `work` is given for a cell: nothing that only this machine or this package knows."""
    return str(terms.recipe(cell)), cell.toml, list(terms.words), str(Path.cwd())


def work(recipe: str, text: str, words: Sequence[str], folder: str) -> dict[str, Any]:
    """Carry out a recipe in a process of its own: an `Ended` as a table.

    In the main thread of a worker: who asks that to stop (SIGTERM, SLURM's warning, or the
    KeyboardInterrupt by which Ray cancels) asks the process, and it ends as it does of itself.

    Args:
        recipe: the recipe's file, made here if this machine does not share it.
        folder: to work in, made like that: paths begin from it.
    """
    place = Path(folder)
    path = place / recipe
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        write(path, text.encode())
    asked: list[int] = []
    begun: list[subprocess.Popen[str]] = []

    def ask(number: int, frame: FrameType | None = None) -> None:
        asked.append(number)
        for process in begun:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in _ASKING}
    # The process inherits this: SLURM warns all that belong to a job, and it would be its end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        begun.append(begin(Path(recipe), words, place, (sys.executable, "-c", _BOUND)))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        if asked:
            ask(asked[0])
        while True:
            try:
                said, _ = begun[0].communicate(timeout=_LOOK)
            except subprocess.TimeoutExpired:
                continue
            except KeyboardInterrupt:
                ask(signal.SIGINT)
                continue
            return asdict(read(begun[0].returncode, said))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        for number, handler in before.items():
            signal.signal(number, handler)
