"""Finding image files, and telling whether they changed without reading them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from advprune.errors import BadData

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


def below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        BadData: a folder cannot be listed.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise _refusal(error)

    # Links are followed, since data sets are often assembled from them.
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.extend(Path(parent, name) for name in files if not name.startswith("."))
    return sorted(found)


def images_below(folder: Path) -> list[Path]:
    """All image files (by their suffix) in a folder and its subfolders, sorted."""
    return [path for path in below(folder) if path.suffix.lower() in SUFFIXES]


def identity(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the relative name, size and modification time of each file."""
    hasher = hashlib.sha256()
    for path in files:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        hasher.update(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return hasher.hexdigest()
