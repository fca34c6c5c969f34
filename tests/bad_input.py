"""A command that must be refused: the words, the exit code, and what the one line says."""

import time
from dataclasses import dataclass
from pathlib import Path

from tiny_run import advprune, refusal

SECONDS = 5.0  # a promise to refuse early, far above what it takes, for machines that are busy


@dataclass(frozen=True)
class Bad:
    """A row of the matrix; words are split at spaces."""

    words: str
    code: int
    says: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ascii(self.words)[1:60].replace(" ", "_").replace("/", "|")


def refused(*words: str | Path, code: int, says: tuple[str, ...] = ()) -> str:
    """The one line: in time, with this code and these parts, and nothing in the folder changed."""
    before = tree(Path())
    started = time.perf_counter()
    result = advprune(*words)
    seconds = time.perf_counter() - started
    message = refusal(result, code)
    assert all(part in message for part in says), message
    assert seconds < SECONDS
    assert tree(Path()) == before
    return message


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every name below a folder, with size and time of change."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found.items()}
