"""The content-addressed store: a folder that exists is complete, and nothing is made twice."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from advprune.errors import NotFound
from advprune.files import write
from deploy.sealed import seal
from pipeline.files import (
    link,
    lock,
    make_folder,
    needed_folder,
    sha256,
    storage_errors,
    sync,
)
from pipeline.stage import MANIFEST, Artifact, Context, Metrics, Stage, read_artifact
from pipeline.storage import Storage

CHECKPOINT = ".checkpoint-"


class Store:
    """Artefacts under `root`/store, one folder per stage and key; runs link to them.

    Args:
        root: made when the first stage has something to write.
        storage: where artefacts are looked for, too, and sent; None for nowhere.
    """

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        self.root = root
        self._folder = root / "store"
        self._storage = storage

    def find(self, stage: Stage, parents: Mapping[str, Artifact]) -> Artifact | None:
        """The artefact of this stage with these settings and parents, if it was ever finished.

        Raises: as `Storage`, and Busy where another process is making it.
        """
        return self._find(self._path(stage, parents))

    def share(self, artifact: Artifact) -> None:
        """Have an artefact in the storage, if there is one. Raises as `Storage.send`."""
        if self._storage is not None:
            self._storage.send(artifact)

    def gather(self, run: str) -> bool:
        """Publish a run that was made elsewhere; whether the storage has it all."""
        names = self._storage.run(run) if self._storage is not None else None
        if names is None:
            return False
        found = {stage: self._find(self._folder / name) for stage, name in names.items()}
        artifacts = {stage: artifact for stage, artifact in found.items() if artifact}
        if len(artifacts) < len(names):
            return False
        self.publish(run, artifacts)
        return True

    def build(
        self,
        stage: Stage,
        parents: Mapping[str, Artifact],
        context: Callable[[Path], Context],
        environment: Mapping[str, str | int],
    ) -> Artifact:
        """Run the stage in a temporary folder and rename it when it is complete.

        A stage that breaks off, for whatever reason, leaves its checkpoints and nothing else, and
        goes on from the last one when it is built again.
        """
        path = self._path(stage, parents)
        temporary = self._temporary(path)
        with self._making(path):
            if path.is_dir():  # another process has finished it since it was looked for
                return read_artifact(path)
            if not (temporary / MANIFEST).is_file():  # else it was complete, but for its name
                metrics, seconds = _run(stage, context, temporary)
                self._seal(stage, parents, temporary, metrics, seconds, environment)
            for checkpoint in temporary.glob(f"{CHECKPOINT}*"):
                checkpoint.unlink()
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
        if self._storage is not None:
            names = {name: artifact.path.name for name, artifact in artifacts.items()}
            self._storage.send_run(run, names)
        return place

    def _find(self, path: Path) -> Artifact | None:
        if self._storage is not None and not path.is_dir():
            self._fetch(path, self._storage)
        return read_artifact(path) if path.is_dir() else None

    def _fetch(self, path: Path, storage: Storage) -> None:
        """Have a folder if the storage does; it gets its name when all of it was checked."""
        temporary = self._temporary(path)
        whole = temporary / "fetched"
        with self._making(path), needed_folder(temporary):
            if path.is_dir():
                return
            shutil.rmtree(whole, ignore_errors=True)
            try:
                if not storage.fetch(path.name, whole):
                    return
                for file in (*whole.rglob("*"), whole):
                    sync(file)
                whole.rename(path)
                sync(self._folder)
            finally:
                shutil.rmtree(whole, ignore_errors=True)
            shutil.rmtree(temporary)  # checkpoints of what is here now

    @contextlib.contextmanager
    def _making(self, path: Path) -> Iterator[None]:
        """Alone, for as long as a folder of the store is being made. Raises Busy."""
        guard = self._folder / f".lock-{path.name}"
        with needed_folder(self._folder), storage_errors(self.root), lock(guard, str(path)):
            yield

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".tmp-{path.name}")

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
        """Record every file but what only served the making, manifest last."""
        files = {
            path.relative_to(folder).as_posix(): {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(CHECKPOINT)
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
        for name in files:
            sync(folder / name)  # or a loss of power could leave the name of a file without it
        write(folder / MANIFEST, seal(manifest))
        sync(folder)


def _run(
    stage: Stage, context: Callable[[Path], Context], temporary: Path
) -> tuple[Metrics, float]:
    """What a stage measured, and its seconds; where it breaks off, only checkpoints stay."""
    _clear(temporary)
    started = time.perf_counter()
    try:
        metrics = stage.run(context(temporary))
    except BaseException:
        _clear(temporary)
        with contextlib.suppress(OSError):  # not empty: a checkpoint is work
            temporary.rmdir()
        raise
    return metrics, time.perf_counter() - started


def _clear(temporary: Path) -> None:
    """Have the folder, with nothing in it but the checkpoints of an earlier attempt."""
    temporary.mkdir(exist_ok=True)
    for stale in temporary.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif not stale.name.startswith(CHECKPOINT):
            stale.unlink()


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of training in a stage that is being made, oldest first."""
    return sorted(folder.glob(f"{CHECKPOINT}[0-9]*"))


def open_run(path: Path) -> dict[str, Artifact]:
    """The artefacts of a finished run, by stage, from its folder of links.

    Raises:
        NotFound: there is no such folder, or it is not a run.
    """
    links = _links(path)
    if not links:
        raise NotFound(
            f"{path}: not a finished run; give a folder under runs/, e.g. runs/latest, or make one "
            "with `advprune run`"
        )
    return {entry.name.split("_", 1)[1]: read_artifact(entry.resolve()) for entry in links}


def is_run(path: Path) -> bool:
    """Whether a folder has the links of a run, whatever they lead to."""
    return bool(_links(path))


def _links(path: Path) -> list[Path]:
    return sorted(path.glob("[0-9][0-9]*_*")) if path.is_dir() else []
