"""Refusals: errors that are the input's, told in one line, each with its exit code.

A message says what, where, the value and the remedy. The codes are those of `sysexits.h` where it
has one. `deploy/errors.py` holds the same idea for the files that must run without this package.
"""


def printable(text: str) -> str:
    """Text that neither breaks a line nor steers a screen: what cannot be shown is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Refused(Exception):
    """Wrong usage or configuration."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # What a file holds ends up in messages, and must neither break the line nor steer a screen.
        super().__init__(printable(message))


class BadData(Refused):
    """Data or an artefact that was found and read, and is not what it must be."""

    exit_code = 65


class NotFound(Refused):
    """An input that does not exist."""

    exit_code = 66


class Unavailable(Refused):
    """A device or package that this machine lacks."""

    exit_code = 69


class OutOfMemory(Refused):
    """More memory than the machine, its container or the GPU gives."""

    exit_code = 71


class CannotCreate(Refused):
    """An output that cannot be created."""

    exit_code = 73


class StorageFailed(Refused):
    """A read or write that failed half-way: disk full, device error."""

    exit_code = 74


class Busy(Refused):
    """Something that another process holds."""

    exit_code = 75


class Incompatible(Refused):
    """Two things that do not fit each other: a checkpoint and an architecture, say."""

    exit_code = 78
