"""The content-addressed store: a folder that exists is complete, and nothing is made twice."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from advprune.errors import NotFound, Refused
from deploy.errors import DeployError
from deploy.sealed import seal
from pipeline.files import (
    link,
    lock,
    make_folder,
    needed_folder,
    sha256,
    storage_errors,
    sync,
    write_bytes,
)
from pipeline.stage import MANIFEST, Artifact, Context, Metrics, Stage, read_artifact

CHECKPOINT = ".checkpoint"


class Store:
    """Artefacts under `root`/store, one folder per stage and key; runs link to them.

    Args:
        root: made when the first stage has something to write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "store"

    def find(self, stage: Stage, parents: Mapping[str, Artifact]) -> Artifact | None:
        """The artefact of this stage with these settings and parents, if it was ever finished."""
        path = self._path(stage, parents)
        return read_artifact(path) if path.is_dir() else None

    def build(
        self,
        stage: Stage,
        parents: Mapping[str, Artifact],
        context: Callable[[Path], Context],
        environment: Mapping[str, str | int],
    ) -> Artifact:
        """Run the stage in a temporary folder and rename it when it is complete.

        An interrupted stage leaves its folder behind and goes on from its last checkpoint; a
        refused one leaves nothing.
        """
        path = self._path(stage, parents)
        temporary = self._folder / f".tmp-{path.name}"
        guard = self._folder / f".lock-{path.name}"
        with (
            needed_folder(self._folder),
            storage_errors(self.root),
            lock(guard, str(path)),
        ):
            if path.is_dir():  # another process has finished it since it was looked for
                return read_artifact(path)
            _clear(temporary)
            started = time.perf_counter()
            try:
                metrics = stage.run(context(temporary))
            except (Refused, DeployError):
                shutil.rmtree(temporary)
                raise
            seconds = time.perf_counter() - started
            self._seal(stage, parents, temporary, metrics, seconds, environment)
            temporary.rename(path)
            sync(self._folder)
        return read_artifact(path)

    def publish(self, run: str, artifacts: Mapping[str, Artifact]) -> Path:
        """Gather a run's artefacts as numbered links, and point `latest` at it."""
        place = self.root / run
        make_folder(place)
        with storage_errors(place):
            for number, (name, artifact) in enumerate(artifacts.items()):
                link(place / f"{number:02d}_{name}", artifact.path)
            for name in ("report.html", "report.json", "report.md"):
                if "report" in artifacts:
                    link(place / name, artifacts["report"].path / name)
            link(self.root / "latest", place)
        return place

    def _path(self, stage: Stage, parents: Mapping[str, Artifact]) -> Path:
        return self._folder / f"{stage.name}-{stage.key(parents)[:20]}"

    def _seal(
        self,
        stage: Stage,
        parents: Mapping[str, Artifact],
        folder: Path,
        metrics: Metrics,
        seconds: float,
        environment: Mapping[str, str | int],
    ) -> None:
        """Drop what only served the making, record the rest, manifest last."""
        (folder / CHECKPOINT).unlink(missing_ok=True)
        files = {
            path.relative_to(folder).as_posix(): {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "schema": 2,
            "stage": stage.name,
            "version": stage.version,
            "key": stage.key(parents),
            "config": stage.config,
            "parents": {name: parents[name].digest for name in stage.needs},
            "files": files,
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "environment": dict(environment),
        }
        write_bytes(folder / MANIFEST, seal(manifest))
        sync(folder)


def _clear(temporary: Path) -> None:
    """Have the folder, with nothing in it but the checkpoint of an interrupted attempt."""
    temporary.mkdir(exist_ok=True)
    for stale in temporary.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif stale.name != CHECKPOINT:
            stale.unlink()


def open_run(path: Path) -> dict[str, Artifact]:
    """The artefacts of a finished run, by stage, from its folder of links.

    Raises:
        NotFound: there is no such folder, or it is not a run.
    """
    links = sorted(path.glob("[0-9][0-9]*_*")) if path.is_dir() else []
    if not links:
        raise NotFound(
            f"{path}: not a finished run; give a folder under runs/, e.g. runs/latest, or make one "
            "with `advprune run`"
        )
    return {entry.name.split("_", 1)[1]: read_artifact(entry.resolve()) for entry in links}
