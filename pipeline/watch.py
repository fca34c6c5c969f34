"""What a stage tells while it runs: a progress bar with its ETA, and checkpoints."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.progress import Progress as Bar
from rich.progress import TaskID
from torch import Tensor

from advprune.method import Progress
from advprune.train import Saved, Tensors
from pipeline.checkpoints import Checkpoints
from pipeline.stopping import Stopping


class Watch:
    """The observer of one stage.

    Args:
        folder: the stage's temporary folder; its checkpoints live and die with it.
        bar, task: where to show progress; a bar that is disabled stays silent.
        stop: whether the run was asked to stop: then the next step ends with a checkpoint.
        every: steps between checkpoints, beside the one after each epoch; None for these alone.
    """

    def __init__(
        self,
        folder: Path,
        bar: Bar,
        task: TaskID,
        stop: Stopping | None = None,
        every: int | None = None,
    ) -> None:
        self._checkpoints = Checkpoints(folder, self._tell)
        self._bar, self._task = bar, task
        self._stop = stop or Stopping()
        self._every = every

    def stepping(self) -> AbstractContextManager[None]:
        return self._stop.stepping()

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        text = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self._bar.update(self._task, completed=progress.step, total=progress.steps, detail=text)

    def due(self, step: int) -> bool:
        return self._stop.asked or (self._every is not None and step % self._every == 0)

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self._checkpoints.save(step, tensors, history)
        self._stop.obey()

    def restore(self) -> Saved | None:
        return self._checkpoints.latest()

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return self._checkpoints.kept(name, make)

    def _tell(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


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

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return make()
