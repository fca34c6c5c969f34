"""What this machine has, what it lacks, and how to get that; one file for each kind of thing."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from pipeline.doctor import engines, machine, packages, storage, tools, torch_build
from pipeline.doctor.finding import Finding, guarded

__all__ = ["Finding", "examine"]


def examine(runs: Path) -> list[Finding]:
    """Everything, in the order in which a newcomer should put it right."""
    looks: Mapping[str, Callable[[], Iterable[Finding]]] = {
        "python": machine.python,
        "platform": machine.platform,
        "packages": packages.core,
        "torch": torch_build.imported,
        "cores": machine.cores,
        "memory": machine.memory,
        "bfloat16": torch_build.bfloat16,
        "cuda": torch_build.cuda,
        "onnxruntime on": engines.providers,
        "tensorrt": engines.tensorrt,
        "extras": packages.extras,
        "disk": partial(storage.disk, runs),
        "file system": partial(storage.file_system, runs),
        "latest run": partial(storage.latest, runs),
        "leftovers": partial(storage.leftovers, runs),
        "clock": machine.clock,
        "bytecode": tools.bytecode,
        "tools": tools.programs,
    }
    return [finding for name, look in looks.items() for finding in guarded(name, look)]
