"""What a stage tells while it runs: how far it is, a line per epoch, and checkpoints."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor

from advprune.method import Progress
from advprune.observer import Saved, Tensors
from pipeline.checkpoints import Checkpoints
from pipeline.lines import METRICS, Lines
from pipeline.stopping import Stopping
from pipeline.view import View


class Watch:
    """The observer of one stage.

    Args:
        folder: the stage's temporary folder; its checkpoints live and die with it.
        view: where to show progress.
        stop: whether the run was asked to stop: then the next step ends with a checkpoint.
        every: steps between checkpoints, beside the one after each epoch; None for these alone.
        told: given the rows of all epochs so far, at the start and whenever there is one more.
    """

    def __init__(
        self,
        folder: Path,
        view: View,
        stop: Stopping | None = None,
        every: int | None = None,
        told: Callable[[list[dict]], None] | None = None,
    ) -> None:
        self._checkpoints = Checkpoints(folder, view.line)
        self._lines = Lines(folder / METRICS)
        self._view = view
        self._stop = stop or Stopping()
        self._every = every
        self._told = told

    def stepping(self) -> AbstractContextManager[None]:
        return self._stop.stepping()

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._view.standing.step(progress, metrics)

    def due(self, step: int) -> bool:
        return self._stop.asked or (self._every is not None and step % self._every == 0)

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self._checkpoints.save(step, tensors, history)
        self._view.standing.saved(step)
        self._stop.obey()

    def restore(self) -> Saved | None:
        saved = self._checkpoints.latest()
        step, _, history = saved or (0, {}, [])
        self._view.standing.resumed(step, history)
        self._tell(history)
        return saved

    def epoch(self, history: list[dict]) -> None:
        self._view.standing.epoch(history)
        self._tell(history)
        self._view.measured()

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return self._checkpoints.kept(name, make)

    def _tell(self, history: list[dict]) -> None:
        self._lines.tell(history)
        if self._told is not None:
            self._told(history)


class Silent:
    """The observer of work that is neither shown nor resumed."""

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        return None

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        return None

    def restore(self) -> None:
        return None

    def epoch(self, history: list[dict]) -> None:
        return None

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return make()
