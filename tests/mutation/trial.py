"""One run of some tests in a process forked for it, some modules served in place of others."""

import ast
import enum
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from mutation.serving import Served

_SLOWER = 5.0  # times what a test takes, and
_GRACE_S = 5.0  # for it to be endless
_MEMORY = 12 << 30  # bytes of a process: a mutant may ask for any amount
# Nobody reads here what rewritten asserts tell, and to collect garbage takes longest of all.
QUIET = ["-q", "--assert=plain", "-p", "_hypothesis_pytestplugin"]
QUIET += ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"]


class Ended(enum.IntEnum):
    """How a run ended, as the exit code of its process."""

    PASSED = 0
    FAILED = 1
    NOTHING_RAN = 70
    NOT_SERVED = 71


def fork(run: Callable[[], int], output: Path = Path(os.devnull)) -> int:
    """The process id of a fork that does this, in a session of its own."""
    sys.stdout.flush()
    gc.freeze()  # what is shared stays shared
    process = os.fork()
    if process:
        return process
    # Whatever happens here must not go on in the copy of the one who called.
    code = Ended.FAILED.value
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tests(
    tests: Mapping[str, float], trees: Mapping[str, ast.Module], root: Path, folder: Path
) -> Ended:
    """Run these tests in this order; for a process made by `fork`, which the first to fail ends.

    Args:
        tests: node id -> seconds that it takes; a test that takes far more ends the process.
        trees: path of a source below `root` -> what is served in its place.
        folder: for the files of the tests; must not exist.
    """
    served = Served(trees, root)
    calm()
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    chosen = _Chosen(tests)
    code = pytest.main([*QUIET, f"--basetemp={folder}", *files], plugins=[chosen])
    if code != pytest.ExitCode.OK:
        return Ended.FAILED
    if served.missing:
        return Ended.NOT_SERVED
    return Ended.PASSED if chosen.passed == len(tests) else Ended.NOTHING_RAN


def calm() -> None:
    """The same examples in every run, no memory of former ones, and none made smaller."""
    settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    settings.load_profile("mutants")


def wait(process: int, limit: float) -> int | None:
    """The exit code of a fork, negative where a signal ended it; None after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if (found := ended(process)) is not None:
            return found
        time.sleep(0.01)
    return None


def ended(process: int) -> int | None:
    """The exit code of a fork that has ended."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


class _Chosen:
    """Leaves of what was collected these tests, in their order, and counts what passed."""

    def __init__(self, tests: Mapping[str, float]) -> None:
        self.passed = 0
        self._seconds = tests
        self._rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._rank),
            key=lambda item: self._rank[item.nodeid],
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        # Of processor time, which does not pass faster on a busy machine.
        limit = _SLOWER * self._seconds[nodeid] + _GRACE_S
        signal.setitimer(signal.ITIMER_PROF, limit)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "failed":
            os._exit(Ended.FAILED)
        self.passed += report.when == "call"
