"""A stage turns artefacts into an artefact: a folder of plain files with a manifest."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from advprune.errors import BadData, NotFound
from deploy.verdicts import canonical
from pipeline.files import sha256

if TYPE_CHECKING:
    from advprune.train import Observer
    from pipeline.recipe import Recipe

MANIFEST = "manifest.json"
Metrics = dict[str, float | int | str]


@dataclass(frozen=True)
class Artifact:
    """A finished folder. Its digest covers the names and contents of its files, nothing else."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        contents = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        return hashlib.sha256(canonical(contents)).hexdigest()

    @property
    def metrics(self) -> Metrics:
        return dict(self.manifest["metrics"])

    def file(self, name: str) -> Path:
        """The path of a file whose content has just been found to be what was recorded.

        Raises:
            NotFound: the artefact has no such file.
            BadData: the file is missing or was changed since.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise NotFound(f"{self.path}: the manifest lists no {name!r}; run again")
        path = self.path / name
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise BadData(
                f"{path}: missing or changed since it was made; remove {self.path} and run again"
            )
        return path

    def check(self) -> Path:
        """The folder, after checking every file in it."""
        for name in self.manifest["files"]:
            self.file(name)
        return self.path


def read_artifact(path: Path) -> Artifact:
    """Raises BadData where the manifest is not one."""
    manifest_path = path / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text())
        for name, entry in manifest["files"].items():
            if not _is_inside(name) or not isinstance(entry["sha256"], str):
                raise ValueError(f"unexpected file {name!r}")
        if not isinstance(manifest["metrics"], dict):
            raise ValueError("unexpected metrics")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadData(f"{manifest_path}: not a manifest ({error}); remove {path}") from error
    return Artifact(path, manifest)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@dataclass(frozen=True)
class Context:
    """What a stage is given: the recipe, the artefacts it needs, an empty folder to fill."""

    recipe: "Recipe"
    inputs: Mapping[str, Artifact]
    out: Path
    observer: "Observer"

    def __getitem__(self, stage: str) -> Artifact:
        return self.inputs[stage]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Args:
        name: also the name of its folder.
        needs: stages whose artefacts it reads.
        config: every setting that its result depends on, and no other.
        run: fills `Context.out` and returns the metrics to remember.
        version: raise it when the same settings give another result.
    """

    name: str
    needs: tuple[str, ...]
    config: Mapping[str, Any]
    run: Callable[[Context], Metrics]
    version: int = 1

    def key(self, parents: Mapping[str, Artifact]) -> str:
        """SHA-256 over the settings, the version and the contents of the parents."""
        identity = {
            "stage": self.name,
            "version": self.version,
            "config": self.config,
            "parents": {name: parents[name].digest for name in self.needs},
        }
        return hashlib.sha256(canonical(identity)).hexdigest()
