"""What opening a deployed file costs in time and memory, seen in a process that does nothing else.

    python -m deploy.footprint FILE --runtime ort --threads 1

prints one line of JSON. Linux only: the peak is that of /proc/self/status, because what `getrusage`
calls a process's own peak begins at the memory of the process that started it.
"""

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deploy.errors import DeployError
from deploy.process import ask
from deploy.runtime import RUNTIMES, guard, load, runtime_for

_ANSWERS = 20


@dataclass(frozen=True)
class Footprint:
    """Of one file in one runtime.

    Attributes:
        load_ms: from the file on disk to a model that takes images, a look at what is in it
            included; packages are imported before.
        first_ms: the first answer, which bears what a runtime puts off until then.
        peak_memory: bytes of the whole process, Python, numpy, onnx and the runtime included, after
            a few answers to one image each.
    """

    load_ms: float
    first_ms: float
    peak_memory: int


def footprint(path: Path, runtime: str | None = None, threads: int = 1) -> Footprint:
    """Measure a file in a fresh process.

    Raises:
        DeployError: as `deploy.runtime.load`; 65, the runtime died of the file.
    """
    words = [str(path), "--runtime", runtime_for(path, runtime), "--threads", str(threads)]
    return Footprint(**json.loads(ask("deploy.footprint", words, path)))


def _measure(path: Path, runtime: str, threads: int) -> Footprint:
    importlib.import_module(RUNTIMES[runtime].module)
    if RUNTIMES[runtime].suffix == ".onnx":
        guard()
    start = time.perf_counter_ns()
    model = load(path, threads, runtime)
    loaded = time.perf_counter_ns()
    image = np.random.default_rng(0).random((1, *model.info.shape), dtype=np.float32)
    asked = time.perf_counter_ns()
    model.predict(image)
    answered = time.perf_counter_ns()
    for _ in range(_ANSWERS):
        model.predict(image)
    return Footprint((loaded - start) / 1e6, (answered - asked) / 1e6, _peak_memory())


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(peak.split()[1])


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="deploy.footprint", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    try:
        runtime = runtime_for(given.path, given.runtime)
        found = _measure(given.path, runtime, given.threads)
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    _main()
