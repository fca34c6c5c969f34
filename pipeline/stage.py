"""A stage turns artefacts into an artefact: a folder of plain files with a manifest."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from advprune.errors import BadData, NotFound
from deploy import shape
from deploy.sealed import is_sealed, unseal
from deploy.verdicts import canonical
from pipeline.files import sha256

if TYPE_CHECKING:
    from advprune.observer import Observer
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

        For readers that need a path. Whoever could swap the file between the two readings could as
        well write a new manifest: digests are against accidents, a bundle's signature is against
        people.

        Raises:
            NotFound: the artefact has no such file.
            BadData: the file is missing, a link, or was changed since.
        """
        path, digest = self._listed(name)
        if not _is_plain(path) or sha256(path) != digest:
            raise self._changed(path)
        return path

    def read(self, name: str) -> bytes:
        """The very bytes that were found to be what was recorded; refusals as `file`."""
        path, digest = self._listed(name)
        content = path.read_bytes() if _is_plain(path) else None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            raise self._changed(path)
        return content

    def check(self) -> Path:
        """The folder, after finding in it every file as it was recorded, and nothing else.

        Raises:
            BadData: a file is missing, was changed since, is a link, or is not listed.
        """
        listed = {MANIFEST, *self.manifest["files"]}
        for path in self.path.rglob("*"):
            name, folder = path.relative_to(self.path).as_posix(), path.is_dir()
            if path.is_symlink() or not (folder or name in listed):
                raise BadData(f"{path}: a link, or not listed in {MANIFEST}; move it away")
        for name in self.manifest["files"]:
            self.file(name)
        return self.path

    def _listed(self, name: str) -> tuple[Path, str]:
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise NotFound(f"{self.path}: the manifest lists no {name!r}; run again")
        return self.path / name, entry["sha256"]

    def _changed(self, path: Path) -> BadData:
        return BadData(
            f"{path}: missing or changed since it was made; remove {self.path} and run again"
        )


def read_artifact(path: Path) -> Artifact:
    """Raises BadData where the manifest is not one, or not as it was written."""
    manifest_path = path / MANIFEST
    try:
        manifest = read_manifest(manifest_path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadData(
            f"{manifest_path}: not a manifest ({reason}); remove {path} and run again"
        ) from error
    return Artifact(path, manifest)


def read_manifest(content: bytes) -> dict[str, Any]:
    """Raises ValueError for what is none, was changed since, or has names that lead out."""
    manifest = unseal(content)
    try:
        shape.check({key: manifest[key] for key in _MANIFEST}, _MANIFEST)
        for name, entry in manifest["files"].items():
            if not _is_inside(name) or not isinstance(entry["sha256"], str):
                raise ValueError(f"unexpected file {name!r}")
    except (LookupError, TypeError) as error:
        raise ValueError(str(error)) from error
    return manifest


def check_if_recorded(path: Path) -> None:
    """Hold a file or folder that is part of an artefact against its manifest; others pass.

    Raises:
        BadData: it was changed since it was made.
    """
    folder = path if path.is_dir() else path.parent
    manifest = folder / MANIFEST
    if manifest.is_file() and is_sealed(manifest.read_bytes()):
        artifact = read_artifact(folder)
        if path == folder:
            artifact.check()
        elif path.name in artifact.manifest["files"]:
            artifact.file(path.name)


# What is made use of, whatever else a manifest records.
_MANIFEST = {
    "config": shape.TABLE,
    "files": shape.TABLE,
    "metrics": shape.TABLE,
    "seconds": shape.NUMBER,
    "environment": shape.TABLE,
}


def _is_plain(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink()
    except OSError:  # a name that no file system takes
        return False


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@dataclass(frozen=True)
class Context:
    """What a stage is given: the recipe, the artefacts it needs, an empty folder to fill.

    `run` is the folder in which the finished run will be found.
    """

    recipe: "Recipe"
    inputs: Mapping[str, Artifact]
    out: Path
    observer: "Observer"
    run: Path = Path("runs", "latest")

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
