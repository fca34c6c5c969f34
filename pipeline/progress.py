"""How far the training of a stage has come, how fast it goes, and when it will be done.

Numbers that are there anyway, and readings of a clock: no step waits for any of it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from advprune.method import Progress

_WINDOW = 64  # steps that rates are taken of: attacks grow longer from epoch to epoch


class Standing:
    """Of one stage, as far as this process has watched it.

    Attributes:
        at: the last step; None before the first.
        loss: of the last step.
        history: a row for each epoch that was measured, earlier processes' included.
        checkpoint: the step after which the last one was written.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._last: float | None = None  # when the last step or measurement ended
        self._saved = self._began
        self._steps: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # seconds, images
        self._pauses: deque[float] = deque(maxlen=_WINDOW)  # seconds that an epoch was measured
        self.at: Progress | None = None
        self.loss = math.nan
        self.history: list[dict] = []
        self.checkpoint: int | None = None

    def resumed(self, step: int, history: list[dict]) -> None:
        self.history = list(history)
        self.checkpoint = step or None

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        now = self._clock()
        if self._last is not None:
            self._steps.append((now - self._last, metrics.get("images", 0)))
        self._last, self.at = now, progress
        self.loss = metrics.get("loss", math.nan)

    def epoch(self, history: list[dict]) -> None:
        now = self._clock()
        if self._last is not None:
            self._pauses.append(now - self._last)
        self._last = now
        self.history = list(history)

    def saved(self, step: int) -> None:
        self.checkpoint, self._saved = step, self._clock()

    @property
    def trains(self) -> bool:
        """Whether these are steps of training, not of a pass that only looks."""
        return not math.isnan(self.loss)

    @property
    def epochs(self) -> int:
        return self.at.steps // self.at.epoch_steps if self.at else 0

    @property
    def epoch_now(self) -> int:
        """The epoch of the last step, counted from one."""
        return math.ceil(self.at.step / self.at.epoch_steps) if self.at else 0

    @property
    def elapsed(self) -> float:
        """Seconds of this process."""
        return self._clock() - self._began

    @property
    def since_checkpoint(self) -> float:
        """Seconds; since the start, where the last one is an earlier process's."""
        return self._clock() - self._saved

    @property
    def images_per_second(self) -> float | None:
        """Over the last steps, measuring left out; None before there are two."""
        steps = tuple(self._steps)  # at once: whoever draws does so in another thread
        seconds = sum(gap for gap, _ in steps)
        return sum(images for _, images in steps) / seconds if seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until all epochs are trained and measured, at the pace of the last ones."""
        steps, pauses = tuple(self._steps), tuple(self._pauses)
        if self.at is None or self._last is None or not steps:
            return None
        a_step = sum(gap for gap, _ in steps) / len(steps)
        a_pause = sum(pauses) / len(pauses) if pauses else 0.0
        to_do = (self.at.steps - self.at.step) * a_step
        to_do += (self.epochs - len(self.history)) * a_pause
        return max(to_do - (self._clock() - self._last), 0.0)

    def validated(self, key: str) -> tuple[float, float] | None:
        """Latest and best of what is measured under a name; None before the first time."""
        values = [row[key] for row in self.history if key in row]
        return (values[-1], max(values)) if values else None

    @property
    def sparsity(self) -> float | None:
        """As it was counted after the last epoch; None where nothing is masked."""
        return self.history[-1].get("sparsity") if self.history else None

    def measured(self) -> dict[str, float]:
        """What depends on the machine and the hour: for logs, never for what has a digest."""
        rate = self.images_per_second
        return {
            "seconds": round(self.elapsed, 3),
            **({} if rate is None else {"images_per_second": round(rate, 1)}),
        }
