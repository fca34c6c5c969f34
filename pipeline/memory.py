"""How much memory there is, how much was used, and what to say when it does not suffice."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from advprune.data.loading import ended
from advprune.errors import OutOfMemory
from pipeline import cgroups
from pipeline.recipe import Recipe
from pipeline.sections import Training

# What allocators of torch, ONNX Runtime, OpenVINO and C++ say, each in an exception of its own.
_SPENT = ("allocate memory", "bad_alloc", "bad allocation", "out of memory")


@contextmanager
def memory_errors(stage: str, batch_size: int | None, device: str) -> Iterator[None]:
    """Turn an allocation that failed into one line. Nothing is tried again with less.

    Args:
        stage: its name, also of its section in a recipe.
        batch_size: of the stage, where it has one.

    Raises:
        OutOfMemory: naming the batch size, the peak and the limit; or a process that decoded
            images was ended.
    """
    try:
        yield
    except Exception as error:
        if refusal := ended(error):
            raise refusal from error
        text = str(error)
        if not isinstance(error, MemoryError) and not any(words in text for words in _SPENT):
            raise
        at = "" if batch_size is None else f" at a batch size of {batch_size}"
        remedy = (
            "give it more"
            if batch_size is None
            else f"give it more, or train with less: --set {stage}.batch_size=N, which is another "
            "recipe with other results"
        )
        raise OutOfMemory(
            f"{stage}: out of memory{at}: {largest(device):,} bytes were used at most, "
            f"{limit(device):,} are the limit; nothing was changed: {remedy}"
        ) from error


def batch_size_of(recipe: Recipe, stage: str) -> int | None:
    """Images of one step of a stage that trains; None of any other."""
    section = getattr(recipe, stage, None)
    return section.batch_size if isinstance(section, Training) else None


def limit(device: str) -> int:
    """Bytes that this process may have: of the GPU, or what machine, container and shell allow."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1]
    limits = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    ]
    if (contained := cgroups.memory()) is not None:
        limits.append(contained)
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        limits.append(addresses)
    return min(limits)


def largest(device: str = "cpu") -> int:
    """Bytes of the largest resident set of this process so far, or of what torch had on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
