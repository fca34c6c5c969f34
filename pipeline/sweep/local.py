"""Cells on this machine: so many processes at a time."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import Ended, Processes
from pipeline.sweep.grid import Cell


class Local:
    """A thread waits for each process."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._processes = Processes()
        self._pool = ThreadPoolExecutor(terms.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *broken_off: object) -> None:
        if any(broken_off):
            self._processes.stop()  # before the pool waits for what it runs
        self._pool.shutdown()

    def submit(self, cell: Cell) -> Future[Ended]:
        return self._pool.submit(self._processes.run, self._terms.recipe(cell), self._terms.words)
