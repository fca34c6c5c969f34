"""Mutant after mutant: the tests that reach it run in a fork until one of them fails."""

import os
import random
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mutation.groups import Group
from mutation.operators import Mutant, mutants, mutated
from mutation.survey import Reach, read, spans_of, survey
from mutation.trial import Ended, ended, fork, run_tests, wait

Fate = Literal["killed", "timeout", "survived", "equivalent"]
_SURVEY_S = 900.0
_LIMIT_S = 300.0  # for a mutant that waits, say
_BUDGET_S = 15.0  # of tests for one mutant; what the slower ones would find is not counted


@dataclass(frozen=True)
class Trial:
    """A mutant and what became of it; `tests` of those that reach it were to be run."""

    path: str
    mutant: Mutant
    fate: Fate
    tests: int


@dataclass
class _Running:
    path: str
    mutant: Mutant
    tests: int
    folder: Path
    deadline: float


def try_group(
    group: Group,
    equivalent: Mapping[str, Mapping[str, str]],
    root: Path,
    scratch: Path,
    sample: int | None = None,
    seed: int = 0,
    jobs: int = 2,
) -> list[Trial]:
    """Try the mutants of a group of modules.

    Args:
        equivalent: as of `groups.read_equivalent`; these are not tried.
        root: of the repository; the working folder.
        scratch: an empty folder.
        sample: of each module at most so many mutants, drawn by `seed`; None is all of them.
        jobs: processes at a time.

    Raises:
        RuntimeError: tests fail without any mutant, or a mutant was not run.
    """
    reach = _survey(group, root, scratch)
    done: list[Trial] = []
    waiting: deque[tuple[str, Mutant, dict[str, float]]] = deque()
    for path in group.modules:
        source = (root / path).read_text(encoding="utf-8")
        spans = spans_of(source)
        for mutant in _drawn(mutants(source), sample, seed):
            if mutant.key in equivalent.get(path, {}):
                done.append(Trial(path, mutant, "equivalent", 0))
                continue
            tests = _affordable(reach.tests_of(path, mutant, spans), reach)
            if tests:
                waiting.append((path, mutant, tests))
            else:
                done.append(Trial(path, mutant, "survived", 0))
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                path, mutant, tests = waiting.popleft()
                folder = scratch / f"{len(waiting)}"
                deadline = time.monotonic() + _LIMIT_S
                process = _start(path, mutant, tests, root, folder)
                running[process] = _Running(path, mutant, len(tests), folder, deadline)
            time.sleep(0.01)
            for process in list(running):
                fate = _fate(process, running[process])
                if fate is not None:
                    trial = running.pop(process)
                    _end(process, trial.folder)
                    done.append(Trial(trial.path, trial.mutant, fate, trial.tests))
                    sys.stderr.write("." if fate == "killed" else fate[0])
                    sys.stderr.flush()
    finally:
        for process, trial in running.items():
            _end(process, trial.folder)
    return done


def _survey(group: Group, root: Path, scratch: Path) -> Reach:
    output = scratch / "output"
    process = fork(lambda: survey(group.tests, group.modules, root, scratch), output)
    try:
        code = wait(process, _SURVEY_S)
    finally:
        _end(process, scratch / "tests")
    if code != 0:
        last = output.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"mutants: {group.name} ends with {code} without any mutant\n{last}")
    return read(scratch)


def _drawn(found: list[Mutant], sample: int | None, seed: int) -> list[Mutant]:
    if sample is None or sample >= len(found):
        return found
    return random.Random(seed).sample(found, sample)


def _affordable(tests: Sequence[str], reach: Reach) -> dict[str, float]:
    found: dict[str, float] = {}
    left = _BUDGET_S
    for test in tests:
        left -= reach.seconds[test]
        if left < 0 and found:
            break
        found[test] = reach.seconds[test]
    return found


def _start(path: str, mutant: Mutant, tests: Mapping[str, float], root: Path, folder: Path) -> int:
    source = (root / path).read_text(encoding="utf-8")
    tree = mutated(source, mutant.number)
    return fork(lambda: run_tests(tests, {path: tree}, root, folder))


def _fate(process: int, trial: _Running) -> Fate | None:
    code = ended(process)
    if code is None:
        return "timeout" if time.monotonic() > trial.deadline else None
    if code == -signal.SIGPROF:
        return "timeout"
    if code in (Ended.NOT_SERVED, Ended.NOTHING_RAN):
        raise RuntimeError(f"mutants: {trial.path}:{trial.mutant.line}: {Ended(code).name}")
    return "survived" if code == Ended.PASSED else "killed"


def _end(process: int, folder: Path) -> None:
    """Whatever a fork has started ends with it."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
    shutil.rmtree(folder, ignore_errors=True)
