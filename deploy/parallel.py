"""Independent pieces of an evaluation, on all cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from advprune import ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(run: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What `run` makes of every item, in their order; the first ones are started first.

    Threads do: torch and the engines let others work while they compute. `run` must not touch what
    another item's does, and a network counts as touched, because attacks change its mode.
    """
    workers = max(min(len(items), ranks.cores()), 1)
    with ThreadPoolExecutor(workers) as pool, _threads_for(workers):
        return list(pool.map(run, items))


@contextmanager
def _threads_for(workers: int) -> Iterator[None]:
    """Torch's threads wait for each other by spinning: sharing a core slows them tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
