"""Processes that may die: children of one that has everything loaded, so that a trial is cheap.

Run as a program it is the server: a line of JSON with jobs in, a line with their ends out. The jobs
of a line run at the same time.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODES = {"kill": 1, "full": 2}


@dataclass(frozen=True)
class Job:
    """A call in a child, and what happens to it meanwhile.

    Attributes:
        call: "module:function", which gives something that JSON can hold.
        kill_after: seconds after which it gets `signal`.
        fault_at: the write, fsync, rename or removal below `below` that goes wrong, counted from 1:
            "kill" ends the process in its middle, "full" is a disk without room.
        file_limit: bytes of the largest file it may write.
        memory_limit: bytes it may have beyond what is loaded already.
    """

    call: str
    args: tuple[Any, ...] = ()
    kill_after: float | None = None
    signal: int = signal.SIGKILL
    below: str = ""
    fault_at: int = 0
    fault: str = "kill"
    file_limit: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that ended it."""

    code: int
    seconds: float
    out: str
    err: str
    result: Any = None
    operations: int = 0


class Children:
    """The server, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, job: Job) -> Ended:
        return self.together([job])[0]

    def together(self, jobs: list[Job]) -> list[Ended]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._process.stdin.flush()
        return [Ended(**end) for end in json.loads(self._process.stdout.readline())]


@contextmanager
def children(folder: Path) -> Iterator[Children]:
    """A server for the duration; its library is compiled into the folder."""
    library = folder / "faults.so"
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(build, check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, __file__, str(library)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield Children(process)
        finally:
            process.kill()


def _serve(library: str) -> None:
    import dying  # what the children need, and torch with it

    dying.warm_up()
    faults = ctypes.CDLL(library)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            jobs = [Job(**job) for job in json.loads(line)]
            started = time.monotonic()
            running: dict[int, tuple[int, Job]] = {}
            for number, job in enumerate(jobs):
                pid = os.fork()
                if pid == 0:
                    _child(job, Path(folder, str(number)), faults)
                running[pid] = number, job
            ends = dict(_wait(running, started, Path(folder)))
            sys.stdout.write(json.dumps([asdict(ends[n]) for n in range(len(jobs))]) + "\n")
            sys.stdout.flush()


def _wait(
    running: dict[int, tuple[int, Job]], started: float, folder: Path
) -> Iterator[tuple[int, Ended]]:
    sent: set[int] = set()
    while running:
        elapsed = time.monotonic() - started
        for pid, (number, job) in list(running.items()):
            if job.kill_after is not None and elapsed >= job.kill_after and pid not in sent:
                sent.add(pid)
                os.kill(pid, job.signal)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del running[pid]
                yield number, _ended(status, elapsed, folder / str(number))
        time.sleep(0.002)


def _ended(status: int, seconds: float, place: Path) -> Ended:
    def text(suffix: str) -> str:
        path = place.with_suffix(suffix)
        return path.read_text() if path.exists() else ""

    said = json.loads(text(".json") or "{}")
    return Ended(os.waitstatus_to_exitcode(status), seconds, text(".out"), text(".err"), **said)


def _child(job: Job, place: Path, faults: ctypes.CDLL) -> None:
    """Never returns."""
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(place.with_suffix(suffix), os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
    code = 1
    try:
        if job.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_limit, job.file_limit))
        if job.memory_limit is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + job.memory_limit
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        module, _, name = job.call.partition(":")
        function = getattr(importlib.import_module(module), name)
        faults.fault_arm(job.below.encode(), ctypes.c_long(job.fault_at), MODES[job.fault])
        result = function(*job.args)
        operations = faults.fault_count()
        faults.fault_arm(b"", ctypes.c_long(0), 0)
        place.with_suffix(".json").write_text(
            json.dumps({"result": result, "operations": operations})
        )
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
