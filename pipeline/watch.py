"""What a stage tells while it runs: a progress bar with its ETA, and a checkpoint every epoch."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress as Bar
from rich.progress import TaskID
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from advprune.errors import BadData
from advprune.method import Progress
from pipeline.files import write_bytes
from pipeline.store import CHECKPOINT


class Watch:
    """The observer of one stage.

    Args:
        folder: the stage's temporary folder; the checkpoint lives and dies with it.
        bar, task: where to show progress; a bar that is disabled stays silent.
    """

    def __init__(self, folder: Path, bar: Bar, task: TaskID) -> None:
        self._path = folder / CHECKPOINT
        self._bar = bar
        self._task = task

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        text = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self._bar.update(self._task, completed=progress.step, total=progress.steps, detail=text)

    def save(self, epoch: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        about = {"epoch": str(epoch), "history": json.dumps(history)}
        write_bytes(self._path, save(tensors, metadata=about))

    def restore(self) -> tuple[int, dict[str, Tensor], list[dict]] | None:
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                about = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return int(about["epoch"]), tensors, json.loads(about["history"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise BadData(
                f"{self._path}: the checkpoint cannot be read ({error}); the next start begins anew"
            ) from error


class Silent:
    """The observer of work that is neither shown nor resumed."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        return None

    def save(self, epoch: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        return None

    def restore(self) -> None:
        return None
