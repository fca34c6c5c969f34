"""Files and folders that are whole or not there, as others can check. Standard library only."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.errors import DeployError


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader or a crash meets the old file or the new one.

    Raises:
        DeployError: 73, nothing can be created there; 74, the write failed (disk full, say).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise DeployError(f"{path}: cannot be created ({error.strerror})", 73) from error
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DeployError(f"{path}: cannot be written ({error.strerror})", 74) from error
    finally:
        with contextlib.suppress(OSError):  # gone already after a replace
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft that becomes `folder` when the block ends, and is gone if the block fails.

    Raises:
        DeployError: 73, the folder exists or cannot be created; 74, a write failed.
    """
    demand_absent(folder)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise DeployError(f"{folder}: cannot be created ({error.strerror})", 73) from error
    try:
        yield draft
        draft.rename(folder)
    except OSError as error:
        raise DeployError(f"{folder}: cannot be written ({error.strerror})", 74) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # gone already after a rename


def demand_absent(folder: Path) -> None:
    """Raises DeployError 73 where there is anything under this name: nothing is written over."""
    if os.path.lexists(folder):
        raise DeployError(f"{folder}: exists already; remove it or name another folder", 73)


def demand_writable(path: Path) -> None:
    """Refuse early where `write_atomic` would refuse late.

    Raises:
        DeployError: 73, a folder has this name, or nothing can be created beside it.
    """
    if path.is_dir():
        raise DeployError(f"{path}: is a folder; name a file in it", 73)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "not writable" if path.parent.is_dir() else "there is no such folder"
        raise DeployError(f"{path}: cannot be created ({path.parent}: {reason})", 73)


def sha256(path: Path) -> str:
    """Digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its path in it, in the order of these paths."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: found[name] for name in sorted(found) if found[name].is_file()}


def write_sums(folder: Path) -> None:
    """List every file below a folder in its SHA256SUMS, as `sha256sum --check` reads it."""
    lines = [f"{sha256(path)}  {name}\n" for name, path in files_below(folder).items()]
    write_atomic(folder / "SHA256SUMS", "".join(lines).encode())


def label_lines(labels: Sequence[str]) -> bytes:
    """The names of the classes in order, one a line.

    Raises:
        DeployError: 65, there are none, or one is not a line of text and would shift the others.
    """
    if not labels or not all(label and label.isprintable() for label in labels):
        raise DeployError("labels: each must be one line of text; rename the classes", 65)
    return "".join(f"{label}\n" for label in labels).encode()
