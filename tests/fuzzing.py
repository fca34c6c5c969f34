"""Damaged files for every reader, each told apart by one number, in a process that may die of them.

    python tests/fuzzing.py 10000            # so many inputs, from 0 on
    python tests/fuzzing.py 1 --first 4711   # that one again, with its traceback

A reader may take a file or refuse it in one line. It must not raise anything else, end the process,
take more than `SECONDS` of processor time, or reach for more memory than `MEMORY` above what the
process had before.
"""

import argparse
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

SECONDS = 10.0
MEMORY = 512 << 20
_ROOT = Path(__file__).parent.parent
TAKEN, REFUSED = "taken", "refused"
_DONE = 77  # how a child ends that came to the end; what it read may end it with 0
_CHUNK = 500  # inputs of a process, which libraries may leak into


Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        samples: whole files, each of which it takes.
        ways: to damage them.
        read: takes a file's content; may raise a refusal and nothing else.
    """

    samples: Sequence[bytes]
    ways: Sequence[Mutation]
    read: Callable[[bytes], object]


@dataclass
class Findings:
    """What became of the inputs.

    Attributes:
        counts: (reader, "taken" or "refused") -> inputs.
        failures: number of the input -> what went wrong.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)


def fuzz(count: int, first: int = 0) -> Findings:
    """Try inputs, in processes that none of them can take down with it but their own."""
    command = [sys.executable, __file__, str(count), "--first", str(first), "--work"]
    paths = os.pathsep.join((str(_ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    return findings_in(done.stdout)


def findings_in(lines: bytes) -> Findings:
    """What `try_all` wrote."""
    findings = Findings()
    for line in lines.splitlines():
        number, reader, outcome = json.loads(line)
        if outcome in (TAKEN, REFUSED):
            findings.counts[reader, outcome] += 1
        else:
            findings.failures[number] = f"{reader}: {outcome}"
    return findings


def try_all(known: Mapping[str, Reader], count: int, first: int) -> None:
    """Try inputs in children of this process, a new one after each that died; write what became."""
    for reader in known.values():
        for sample in reader.samples:
            reader.read(sample)
    end = first + count
    with mmap.mmap(-1, 8) as begun:
        while first < end:
            sys.stdout.flush()
            if not (child := os.fork()):
                _child(known, range(first, min(first + _CHUNK, end)), begun)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            number = int.from_bytes(begun[:], "big")
            if code != _DONE:
                how = "took too long" if code == -signal.SIGPROF else f"ended the process ({code})"
                _say(number, _name(known, number), how)
            first = number + 1


def _child(known: Mapping[str, Reader], numbers: range, begun: mmap.mmap) -> NoReturn:
    """Try inputs, noting each before it is tried; ends the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        begun[:] = number.to_bytes(8, "big")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        _say(number, _name(known, number), _outcome(known, number))
    sys.stdout.flush()
    os._exit(_DONE)


def _outcome(known: Mapping[str, Reader], number: int) -> str:
    from advprune.errors import Refused
    from deploy import edge_verify
    from deploy.errors import DeployError

    rng, reader = Random(number), known[_name(known, number)]
    content = rng.choice(reader.ways)(rng, rng.choice(reader.samples), reader.samples)
    try:
        reader.read(content)
    except (Refused, DeployError, edge_verify.Refused) as error:
        return REFUSED if str(error).isprintable() else f"refused with {str(error)!r}"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return TAKEN


def _name(known: Mapping[str, Reader], number: int) -> str:
    return list(known)[number % len(known)]


def _say(number: int, reader: str, outcome: str) -> None:
    sys.stdout.write(json.dumps([number, reader, outcome]) + "\n")
    sys.stdout.flush()  # before anything can end the process


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", action="store_true", help="in this very process")
    options = parser.parse_args()
    if options.work:
        from fuzz_readers import readers

        with tempfile.TemporaryDirectory() as folder:
            try_all(readers(Path(folder)), options.count, options.first)
        return 0
    findings = fuzz(options.count, options.first)
    for (reader, outcome), count in sorted(findings.counts.items()):
        sys.stdout.write(f"{reader:20}{outcome:10}{count:8}\n")
    for number, failure in findings.failures.items():
        sys.stdout.write(f"{number}: {failure}\n")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
