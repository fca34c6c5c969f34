"""Writing that leaves either the old file or the new one, and says how much room was missing."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from advprune.errors import CannotCreate, Refused, StorageFailed

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR)
_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def write(path: Path, data: bytes) -> None:
    """Write beside the file, flush to the disk, then rename over it.

    Raises:
        CannotCreate: nothing can be written there.
        StorageFailed: the disk is full or fails; the message names the bytes needed and free.
        OSError: anything else, such as a folder that is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # never there, or as read-only as the rest
            temporary.unlink(missing_ok=True)
        if refusal := storage_refusal(path, error, len(data)):
            raise refusal from error
        raise


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, which a kill may leave torn: for what is written anew then.

    Raises: as `write`.
    """
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        if refusal := storage_refusal(path, error, len(data)):
            raise refusal from error
        raise


def storage_refusal(path: Path, error: OSError, needed: int | None = None) -> Refused | None:
    """One line with the way out for a failure of the disk; None for an error that is none.

    Args:
        path: what was to be written, or the folder it was to be in.
        needed: bytes of what was to be written, where they are known.
    """
    reason = error.strerror or str(error)
    if error.errno in _FORBIDDEN:
        return CannotCreate(
            f"{path}: not writable ({reason}); choose another folder with --runs DIR"
        )
    if error.errno in _FAILED:
        return StorageFailed(storage_message(path, reason, needed))
    return None


def storage_message(path: Path, reason: str, needed: int | None = None) -> str:
    """What to say of a write that failed half-way."""
    wanted = "" if needed is None else f"{needed:,} bytes are needed, "
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    return (
        f"{path}: write failed ({reason}); {wanted}{free:,} bytes are free: make room, or choose "
        "another disk with --runs DIR, and run the same command again"
    )
