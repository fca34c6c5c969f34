"""Files that are whole or not there, and JSON that says each thing once. Standard library only."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

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


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object in which no key comes twice.

    Raises:
        ValueError: a key comes twice.
    """
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key comes twice")
    return content
