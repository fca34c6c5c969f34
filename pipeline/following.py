"""What all ranks but the first do: take part in the stages that are for all."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from advprune.observer import Tensors
from pipeline.checkpoints import Checkpoints
from pipeline.devices import resolve_device
from pipeline.joining import Together, hear
from pipeline.memory import batch_size_of, memory_errors
from pipeline.plan import plan
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context, read_artifact
from pipeline.stopping import Stopping, stopping
from pipeline.watch import Silent


def follow(recipe: Recipe) -> int:
    """Take part in a run of the first rank, and end with its exit code.

    Raises:
        Refused and its kinds: what went wrong here.
        RankLost: the first rank, or another, has ended.
        Terminated: all ranks were asked to stop, and what they had done is kept.
    """
    device, artifacts = resolve_device(recipe.device), dict[str, Artifact]()
    with stopping() as stop:
        for stage in plan(recipe):
            word = hear()
            if "make" in word:
                # A stage fills a folder with what is the same on all ranks; the first one's counts.
                with tempfile.TemporaryDirectory() as scratch:
                    observer = Together(_Following(Path(word["make"]), stop))
                    with memory_errors(stage.name, batch_size_of(recipe, stage.name), device):
                        stage.run(Context(recipe, artifacts, Path(scratch), observer))
                word = hear()
            artifacts[stage.name] = read_artifact(Path(word["made"]))
        return int(hear()["exit_code"])


class _Following(Silent):
    """An observer that shows and saves nothing, but what attacks found on its images.

    Args:
        folder: of the first rank's checkpoints.
    """

    def __init__(self, folder: Path, stop: Stopping) -> None:
        self._checkpoints = Checkpoints(folder, lambda _: None)
        self._stop = stop

    def stepping(self) -> AbstractContextManager[None]:
        return self._stop.stepping()

    def due(self, step: int) -> bool:
        return self._stop.asked

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self._stop.obey()

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return self._checkpoints.kept(name, make)
