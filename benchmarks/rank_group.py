"""Ranks of this machine, gloo between them and one thread each, that do what they are asked."""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from training import Setting, ours

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection as Connection

_MESSAGES = 50
_SIDE = 384  # of a matrix whose square takes about as long as a layer of a small network


class Step(NamedTuple):
    """Seconds of one step of one rank: by the clock, of its processor, and in all-reduce."""

    wall: float
    processor: float
    summing: float


def step(setting: Setting) -> Step:
    """One step of `fit()` as this process has it, alone or as a rank."""
    in_sums = 0.0
    send = dist.all_reduce

    def timed(*args: Any, **given: Any) -> Any:
        nonlocal in_sums
        started = time.perf_counter()
        found = send(*args, **given)
        in_sums += time.perf_counter() - started
        return found

    readings: list[Step] = []

    def read() -> float:
        readings.append(Step(time.perf_counter(), time.process_time(), in_sums))
        return 0.0

    dist.all_reduce = timed
    try:
        ours(setting, read)()
    finally:
        dist.all_reduce = send
    first, last = readings[0], readings[-1]
    return Step(*((b - a) / (len(readings) - 1) for a, b in zip(first, last, strict=True)))


def message(numbers: int) -> float:
    """Seconds until all ranks have the sum of so many float32 numbers.

    Each message comes after some work, as in a step. One right after the other, whose threads and
    cores are still awake, takes a fraction of that.
    """
    tensor, work = torch.zeros(numbers), torch.zeros(_SIDE, _SIDE)
    dist.all_reduce(tensor)
    seconds = 0.0
    for _ in range(_MESSAGES):
        torch.mm(work, work)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds += time.perf_counter() - started
    return seconds / _MESSAGES


class Ranks:
    """Processes that wait, without computing, until all are asked for the same at once."""

    def __init__(self, pipes: "Sequence[Connection]") -> None:
        self._pipes = pipes

    def step(self, setting: Setting) -> list[Step]:
        """A step, as each rank has it."""
        return self._ask(setting)

    def message(self, numbers: int) -> float:
        """Seconds of an all-reduce, the mean of the ranks."""
        found = self._ask(numbers)
        return sum(found) / len(found)

    def _ask(self, work: Setting | int) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(work)
        return [pipe.recv() for pipe in self._pipes]


@contextmanager
def started(count: int) -> Iterator[Ranks]:
    """So many ranks, which end with the block."""
    meeting = tempfile.TemporaryDirectory()
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(count)]
    processes = [
        spawn.Process(target=_rank, args=(number, count, meeting.name, theirs), daemon=True)
        for number, (_, theirs) in enumerate(pairs)
    ]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    try:
        yield Ranks([ours for ours, _ in pairs])
        for pipe, _ in pairs:
            pipe.send(None)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        meeting.cleanup()


def _rank(number: int, count: int, meeting: str, asked: "Connection") -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}/place", rank=number, world_size=count
    )
    while (work := asked.recv()) is not None:
        asked.send(step(work) if isinstance(work, Setting) else message(work))
    dist.destroy_process_group()
