"""Folders, links and locks of runs, and errors that say what to do."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from advprune.errors import Busy, CannotCreate, StorageFailed
from advprune.files import storage_message, storage_refusal, write

_INTRODUCTION = 0.5  # seconds that the holder of a lock has to write its name


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")


def sync(path: Path) -> None:
    """Flush a file, or a folder's own entries (names), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(path: Path, target: Path) -> None:
    """Make `path` a relative symbolic link to `target`, replacing an older link at once.

    Raises:
        CannotCreate: a folder is in the way, as after copying runs without their links.
    """
    if path.is_dir() and not path.is_symlink():
        raise CannotCreate(f"{path}: is a folder, must become a link; move it away")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, path.parent))
    temporary.replace(path)


@contextmanager
def needed_folder(path: Path) -> Iterator[None]:
    """Have a folder for a while; of those made for it, none that is still empty stays behind.

    Raises:
        CannotCreate: as `make_folder`.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        make_folder(path)
        yield
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # not empty: something was put there
                made.rmdir()


def make_folder(path: Path) -> None:
    """Create a folder where there is none.

    Raises:
        CannotCreate: read-only, forbidden, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotCreate(
            f"{path}: cannot be created ({reason}); choose another folder with --runs DIR"
        ) from error


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Translate failures of the disk below `folder` into one line with the way out."""
    try:
        yield
    except SafetensorError as error:
        if "os error" not in str(error):
            raise
        raise StorageFailed(storage_message(folder, str(error))) from error
    except OSError as error:
        if refusal := storage_refusal(folder, error):
            raise refusal from error
        raise


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock, which the kernel frees however the process ends; the file goes with it.

    Raises:
        Busy: another process holds it; the message names it.
    """
    with _locked(path, what) as file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, what: str) -> IO[str]:
    """The file, open and locked, and still the one that others find at this path."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            file.close()
            raise Busy(
                f"{what}: in use by {holder}; wait for it, or choose another folder with --runs DIR"
            ) from error
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its holder removed it between our two calls


def _holder(file: IO[str]) -> str:
    """Who holds a lock; it may only just have got it, and be about to write its name."""
    until = time.monotonic() + _INTRODUCTION
    while True:
        file.seek(0)
        if holder := file.read().strip():
            return holder
        if time.monotonic() > until:
            return "another process"
        time.sleep(0.01)
