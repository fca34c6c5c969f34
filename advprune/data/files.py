"""Finding image files, and telling whether they changed without reading them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from advprune.errors import BadData, NotFound

SUFFIXES = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)


def _refusal(error: OSError) -> BadData:
    return BadData(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones are left out.

    Raises:
        BadData: the folder cannot be listed.
    """
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise _refusal(error) from error


def root_of_classes(path: Path, asked: str) -> Path:
    """The folder that a user named, with ~ expanded.

    Args:
        asked: how the user named it.

    Raises:
        NotFound: there is no such folder.
        BadData: it is a file.
    """
    try:
        root = path.expanduser()
    except RuntimeError as error:
        raise NotFound(f"{asked}: {path.parts[0]} has no home folder; check the path") from error
    if not root.exists():
        raise NotFound(f"{asked}: there is no folder {root.absolute()}; check the path")
    if not root.is_dir():
        raise BadData(f"{asked}: {root} is a file; give the folder that holds the class folders")
    return root


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, in the order of the class names.

    Raises:
        BadData: a class has no images.
    """
    classes = {path.name: images_below(path) for path in folders_in(folder)}
    for name, images in classes.items():
        if not images:
            known = " ".join(sorted(SUFFIXES))
            raise BadData(
                f"{folder / name}: the class has no images ({known}); add some or remove it"
            )
    return classes


def below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        BadData: a folder cannot be listed, or holds itself.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise _refusal(error)

    # Links are followed, since data sets are often assembled from them.
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _demand_no_way_back(Path(parent, name))
        found.extend(Path(parent, name) for name in files if not name.startswith("."))
    return sorted(found)


def _demand_no_way_back(folder: Path) -> None:
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(target := folder.resolve()):
        raise BadData(f"{folder}: leads back to {target}, without end; remove the link")


def images_below(folder: Path) -> list[Path]:
    """All image files (by their suffix) in a folder and its subfolders, sorted."""
    return [path for path in below(folder) if path.suffix.lower() in SUFFIXES]


def identity(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the relative name, size and modification time of each file.

    Raises:
        BadData: a file is gone, or a link that leads nowhere.
    """
    hasher = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise BadData(f"{path}: cannot be read ({error.strerror}); remove it") from error
        name = os.fsencode(path.relative_to(root))
        hasher.update(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return hasher.hexdigest()
