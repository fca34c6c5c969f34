"""What SIGTERM does: a run stops where nothing is lost, and soon.

Those who send it (schedulers, container engines, spot markets) kill some 30 seconds later. So the
step that is being taken may end and its checkpoint be written; if it takes longer than that, the
stage breaks off and goes on later from the checkpoint before.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 15.0  # seconds for a step to end
LAST = 25.0  # seconds after which the process ends without unwinding: a thread may not let it


class Terminated(BaseException):
    """A request to stop that was obeyed. No `Exception`: no handler of those may keep it."""

    exit_code = 128 + signal.SIGTERM


class Stopping:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._in_steps = False
        self._end = threading.Timer(LAST, os._exit, [Terminated.exit_code])
        self._end.daemon = True

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, a request waits for `obey`: breaking a step off would lose it."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False

    def obey(self) -> None:
        """Raises Terminated if the run was asked to stop. Called when all is saved."""
        if self.asked:
            raise Terminated("terminated; the same command goes on from the last checkpoint")

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM, and of the alarm that it sets: then patience is over.

        Asked twice, as where a batch system and our own parent both pass a request on, is asked.
        """
        if self.asked and number == signal.SIGTERM:
            return
        if not self.asked:
            self.asked = True
            self._end.start()
            if self._in_steps:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                return
        self.obey()

    def over(self) -> None:
        """Nothing is left that could not be ended."""
        self._end.cancel()


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Obey SIGTERM for the duration, where signals can be handled: in the main thread."""
    stop = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop.ask) for number in signals}
    try:
        yield stop
    finally:
        stop.over()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
