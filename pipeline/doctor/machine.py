"""The machine itself: interpreter, system, cores, memory, clock."""

import os
import platform as system
import sys
import time
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

from pipeline import cgroups
from pipeline.doctor.finding import Finding
from pipeline.doctor.packages import PACKAGE

_MEMINFO = Path("/proc/meminfo")
_LEAST_MEMORY = 2_000_000_000  # bytes: torch alone takes 0.8, and a run of the digits 1.1
_SLACK = 86_400  # seconds: time zones and slow clocks do no harm


def python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    found, asked = system.python_version(), metadata(PACKAGE)["Requires-Python"]
    if SpecifierSet(asked).contains(found, prereleases=True):
        yield Finding("python", "ok", f"{found}, {sys.executable}")
    else:
        remedy = "rm -r .venv && make setup PYTHON=python3.11"
        yield Finding("python", "missing", f"{found}, must be {asked}", remedy)


def platform() -> Iterator[Finding]:
    found = f"{system.system()} {system.release()} on {system.machine()}"
    if system.system() == "Linux":
        yield Finding("platform", "ok", found)
    else:
        remedy = "run it on Linux, or in a Linux container, if something fails"
        yield Finding("platform", "warning", f"{found}; only Linux is tested", remedy)


def cores() -> Iterator[Finding]:
    """Threads beyond the cores that they get wait for each other."""
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, quota = torch.get_num_threads(), cgroups.cores()
    found = f"{allowed} of {os.cpu_count()} cores may be used, torch uses {threads} threads"
    if quota is not None and quota < (allowed or 1):
        found += f", the container gives the time of {quota:g}"
        allowed = max(1, int(quota))
    if threads > (allowed or 1):
        yield Finding("cpu", "warning", found, f"export OMP_NUM_THREADS={allowed}")
    else:
        yield Finding("cpu", "ok", found)


def memory() -> Iterator[Finding]:
    total, free = (_meminfo(name) for name in ("MemTotal", "MemAvailable"))
    limit = cgroups.memory()
    known = [size for size in (total, limit) if size is not None]
    if not known:
        yield Finding("memory", "warning", "this system does not say", "see that 2 GB are free")
        return
    found = f"{min(known) / 1e9:.1f} GB"
    if limit is not None and limit == min(known):
        found += " are the limit of the container"
    if free is not None:
        found += f", {free / 1e9:.1f} GB of the machine are free"
    if min(known) < _LEAST_MEMORY or (free is not None and free < _LEAST_MEMORY):
        remedy = "end other programs, give the container more, or train on less: --limit-train N"
        yield Finding("memory", "warning", found, remedy)
    else:
        yield Finding("memory", "ok", found)


def clock() -> Iterator[Finding]:
    """Files from the future confuse make and tracking, and nobody finds out why."""
    now, made = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(now))
    if now < made - _SLACK:
        yield Finding(
            "clock",
            "warning",
            f"{found}, which is before this program was written to the disk",
            "timedatectl set-ntp true",
        )
    else:
        yield Finding("clock", "ok", found)


def _meminfo(name: str) -> int | None:
    """Bytes of one line of /proc/meminfo, where there is such a thing."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines[name].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None
