"""`--track`: what training comes to is told to TensorBoard or MLflow as well.

A tracker is given what is in files anyway, and is asked what it has already. So a run that goes on
goes on in the same record, a stage that was cached is in it too, and what a tracker missed while
its disk was full or its server gone is made up for by the same command.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from advprune.errors import Refused, Unavailable
from pipeline.lines import METRICS, from_lines
from pipeline.recipe import Recipe
from pipeline.resolve import flatten
from pipeline.stage import Artifact
from pipeline.stopping import Terminated
from pipeline.wording import unknown

# What it is called -> what must be installed. The module is `pipeline.tracking.to_NAME`.
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}


class Tracker(Protocol):
    """A record of one run, outside of it. Any call may fail; see `Tracking`."""

    def begin(self, runs: Path, run: str, recipe: Mapping[str, str]) -> None:
        """Go on with the record of this run, or begin one."""
        ...

    def steps(self, name: str) -> set[int]:
        """The steps at which the record has this scalar."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def verdict(self, word: str, report: Path) -> None: ...

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        ...


class Tracking:
    """All trackers that were asked for; one that fails is named once and left alone.

    Args:
        asked: names, or several with commas between them.
        tell: given one line when one fails.

    Raises:
        Refused: there is no such tracker.
        Unavailable: its package is missing.
    """

    def __init__(self, asked: Iterable[str], tell: Callable[[str], None]) -> None:
        names = dict.fromkeys(name.strip() for word in asked for name in word.split(","))
        self._trackers = {name: _tracker(name) for name in names}
        self._tell = tell
        self._begun: set[str] = set()
        self._about: tuple[Path, str, Mapping[str, str]] = Path(), "", {}
        self._there: dict[tuple[str, str], set[int]] = {}

    @contextmanager
    def run(self, runs: Path, run: str, recipe: Recipe) -> Iterator[None]:
        """Keep the record of a run for the duration; it begins when there is something to tell."""
        settings = flatten(recipe.model_dump(mode="json", exclude_none=True))
        words = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in settings.items()
        }
        self._about, status = (runs, run, words), "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        finally:
            if self._begun:
                self._each(lambda _, tracker: tracker.end(status))

    def tell(self, stage: str, history: list[dict], measured: Mapping[str, float]) -> None:
        """Add the epochs of a stage that a tracker does not have yet.

        Args:
            measured: of the last epoch.
        """

        def add(name: str, tracker: Tracker) -> None:
            if (name, stage) not in self._there:
                self._there[name, stage] = tracker.steps(f"{stage}/loss")
            there = self._there[name, stage]
            for row in history:
                if row["epoch"] not in there:
                    values = {**row, **(measured if row is history[-1] else {})}
                    del values["epoch"]
                    scalars = {f"{stage}/{key}": float(value) for key, value in values.items()}
                    tracker.scalars(row["epoch"], scalars)
                    there.add(row["epoch"])

        if history:
            self._each(add)

    def finished(self, stage: str, artifact: Artifact) -> None:
        """A stage is there, perhaps made long ago: whatever is not told of it yet."""
        if self._trackers and METRICS in artifact.manifest["files"]:
            self.tell(stage, from_lines(artifact.read(METRICS)), {})

    def verdict(self, artifacts: Mapping[str, Artifact]) -> None:
        """What the run ends in: what was measured on the files that ship, and the report."""
        if not self._trackers:
            return
        measured = {
            f"verdict/{key}": float(value)
            for key, value in artifacts["verify"].metrics.items()
            if not isinstance(value, str)
        }
        word = str(artifacts["gate"].metrics["verdict"])
        report = artifacts["report"].file("report.html")

        def add(_: str, tracker: Tracker) -> None:
            new = {key: value for key, value in measured.items() if not tracker.steps(key)}
            tracker.scalars(0, new)
            tracker.verdict(word, report)

        self._each(add)

    def _each(self, act: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                if name not in self._begun:
                    tracker.begin(*self._about)
                    self._begun.add(name)
                act(name, tracker)
            except Exception as error:
                # Whatever it is, a server that is gone or a full disk: it is not the run's failure.
                del self._trackers[name]
                what = " ".join(str(error).split()) or type(error).__name__
                self._tell(
                    f"warning: --track {name} failed and is left alone ({what}); the run goes on, "
                    "and the same command fills in what is missing"
                )


def _tracker(name: str) -> Tracker:
    if name not in PACKAGES:
        raise Refused(unknown("--track", name, list(PACKAGES)))
    try:
        module = importlib.import_module(f"pipeline.tracking.to_{name}")
    except ImportError as error:
        raise Unavailable(
            f"--track {name}: a package is missing ({error}); type: pip install {PACKAGES[name]}"
        ) from error
    return module.Record()
