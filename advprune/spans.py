"""span(): names what the time inside is spent on, for whoever listens.

Nobody does but `Times`, and while it does not, a span costs a look at one variable.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import record_function

OTHER = "other"  # what no span names

_listener: "Times | None" = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """The time inside is spent on `name`, but for what spans inside of it name."""
    times = _listener
    if times is None:
        yield
        return
    with record_function(name):
        times.enter(name)
        try:
            yield
        finally:
            times.leave()


class Times:
    """Seconds by span: each moment counts once, so that all of them add up to the wall clock's.

    A moment belongs to the innermost span. Where threads are in spans at the same time, it is
    divided among them, and the thread that made this object is taken to wait for the others.

    Args:
        synchronise: called before every reading of the clock. A GPU works while its caller goes on,
            so `torch.cuda.synchronize` is needed there, and slows the run down.

    Attributes:
        seconds: by span, up to the last border of a span.
    """

    def __init__(self, synchronise: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._open: dict[int, list[str]] = {}
        self._own = threading.get_ident()
        self._instead: str | None = None
        self._lock = threading.Lock()
        self._read = time.perf_counter()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be told of the spans of all threads. One listens at a time."""
        global _listener
        assert _listener is None, "another one listens"
        self._read = time.perf_counter()
        _listener = self
        try:
            yield
        finally:
            _listener = None
            self.put_on(None)

    def enter(self, name: str) -> None:
        with self._lock:
            self._charge()
            self._open.setdefault(threading.get_ident(), []).append(name)

    def leave(self) -> None:
        with self._lock:
            self._charge()
            self._open[threading.get_ident()].pop()

    def put_on(self, name: str | None) -> None:
        """From now on all time is spent on `name`, whatever the spans say; None ends that."""
        with self._lock:
            self._charge()
            self._instead = name

    def _charge(self) -> None:
        self._synchronise()
        now = time.perf_counter()
        running = self._running()
        for name in running:
            self.seconds[name] = self.seconds.get(name, 0.0) + (now - self._read) / len(running)
        self._read = now

    def _running(self) -> list[str]:
        """What the time up to now was spent on."""
        if self._instead is not None:
            return [self._instead]
        others = [names[-1] for who, names in self._open.items() if names and who != self._own]
        return others or [(self._open.get(self._own) or [OTHER])[-1]]
