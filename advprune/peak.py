"""How fast this device can be: its best matrix product and its best copy, found in seconds."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SECONDS = 0.25  # for each size
_CPU_SIDES = (512, 1024, 2048)
_GPU_SIDES = (2048, 4096, 8192)
_COPIED = 2**28  # bytes, more than a cache holds


@dataclass(frozen=True)
class Peak:
    """The best rates that were seen, with the threads that torch has.

    Attributes:
        fp32, bf16: operations per second of a square matrix product, two for each multiply-add.
        copy: bytes per second that a copy reads and writes.
    """

    fp32: float
    bf16: float
    copy: float

    def seconds(self, operations: dict[str, int]) -> float:
        """How long operations would take at the peak of their type, see `Flops.by_type`."""
        halves = ("bfloat16", "float16")
        return sum(
            count / (self.bf16 if name in halves else self.fp32)
            for name, count in operations.items()
        )


def measure(device: str) -> Peak:
    """Probe a device: "cpu", "cuda" or "cuda:N". Takes two or three seconds."""
    return Peak(_product(device, torch.float32), _product(device, torch.bfloat16), _copy(device))


def _product(device: str, dtype: torch.dtype) -> float:
    """Operations per second, of the size that does best."""
    best = 0.0
    for side in _CPU_SIDES if device == "cpu" else _GPU_SIDES:
        left = torch.full((side, side), 0.5, dtype=dtype, device=device)
        out = torch.empty_like(left)

        def run(left: torch.Tensor = left, out: torch.Tensor = out) -> None:
            torch.mm(left, left, out=out)

        took = _fastest(run, device)
        best = max(best, 2 * side**3 / took)
        if 8 * took > 4 * _SECONDS:  # the next size would take more than a second
            break
    return best


def _copy(device: str) -> float:
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * _COPIED / _fastest(lambda: target.copy_(source), device)


def _fastest(run: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of all calls in a while, and of two at least: the first one warms."""
    fastest, started, calls = math.inf, time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - started < _SECONDS:
        begun = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        fastest, calls = min(fastest, time.perf_counter() - begun), calls + 1
    return fastest
