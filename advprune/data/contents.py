"""What is in a file of a folder: read once, whole, and from nowhere else."""

import os
from pathlib import Path

from advprune.errors import BadData, NotFound, StorageFailed

AGAIN = "put it back as it was, or run again: the data stage then reads all images anew"


def content_of(root: Path, name: bytes) -> bytes:
    """The bytes of a file.

    Args:
        root: a folder, without links.
        name: of the file in it, which nobody need trust.

    Raises:
        NotFound: there is no such file.
        BadData: the name leads out of the folder, by `..` or by a link; or it is no plain file, or
            one that may not be read.
        StorageFailed: the device failed.
    """
    path = root / os.fsdecode(name)
    try:
        if b"\0" in name or not (real := path.resolve(strict=True)).is_relative_to(root):
            raise BadData(f"{path}: leads out of {root}, where nothing is streamed from; copy it")
        if not real.is_file():  # a pipe would be waited for without end
            raise BadData(f"{path}: is no plain file; remove it")
        return real.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: is gone; {AGAIN}") from error
    except (PermissionError, RuntimeError) as error:  # or links that lead in a circle
        raise BadData(f"{path}: cannot be read ({error}); check its permissions") from error
    except OSError as error:
        raise StorageFailed(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
