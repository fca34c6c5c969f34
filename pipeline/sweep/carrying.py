"""Which cell is begun when, and how often, whatever engine runs it."""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from pipeline.sweep.cell import BUSY, Ended
from pipeline.sweep.grid import Cell

Submit = Callable[[Cell], Future[Ended]]
PAUSE = 2.0  # seconds, before a cell asks again for what another process is making


def carry_out(
    cells: Sequence[Cell], submit: Submit, retries: int
) -> Generator[tuple[Cell, Ended, int], None, None]:
    """Each cell, how it ended and after how many attempts, in the order in which they end.

    Of cells that begin from the same dense network one goes ahead, and the others wait until it
    has made it, or failed to. One that meets a stage which another is making is tried again, which
    counts as no attempt.

    Args:
        retries: attempts beyond the first, where trying again could help.
    """
    heads = list({cell.dense: cell for cell in reversed(cells)}.values())[::-1]
    held = [cell for cell in cells if cell not in heads]
    attempts = dict.fromkeys((cell.run for cell in cells), 0)
    running: dict[Future[Ended], Cell] = {}

    def begin(cell: Cell) -> None:
        attempts[cell.run] += 1
        running[submit(cell)] = cell

    for cell in heads:
        begin(cell)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell, ended = running.pop(future), future.result()
            if ended.code == BUSY:
                attempts[cell.run] -= 1
                time.sleep(PAUSE)
                begin(cell)
                continue
            if ended.may_pass and attempts[cell.run] <= retries:
                begin(cell)
                continue
            for other in [one for one in held if one.dense == cell.dense]:
                held.remove(other)
                begin(other)
            yield cell, ended, attempts[cell.run]
