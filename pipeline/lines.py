"""Files that grow by a line of JSON per epoch, so that others can follow: `tail -f`.

A stage's `metrics.jsonl` has what training came to and nothing else: it is part of an artefact, and
the same in every run. `progress.jsonl` of a run has the rest beside it: when, how long, how fast.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprune.files import append, write
from deploy import strict_json
from pipeline.files import make_folder

METRICS = "metrics.jsonl"
PROGRESS = "progress.jsonl"


def to_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def from_lines(content: bytes) -> list[dict[str, Any]]:
    """The rows; what is no line, such as the last one of a process that was killed, is none."""
    rows = []
    for text in content.decode(errors="replace").splitlines():
        try:
            row = strict_json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class Lines:
    """A file of rows that begins empty, and is told of all of them again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def tell(self, history: list[dict]) -> None:
        if new := history[self._count :]:
            append(self._path, to_lines(new))
            self._count = len(history)


class ProgressLog:
    """Of a run: a line for each epoch of each stage, once, however often the run was ended.

    Args:
        folder: of the run; made with the first line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / PROGRESS
        self._there: dict[str, set[int]] = {}

    def tell(self, stage: str, history: list[dict], measured: Mapping[str, float]) -> None:
        """Add what is new of a stage; at its first call, also forget what it is to do again.

        Args:
            measured: of the last row; earlier ones that are not there yet have lost theirs.
        """
        if stage not in self._there:
            self._there[stage] = self._rewind(stage, len(history))
        for row in history:
            if row["epoch"] in self._there[stage]:
                continue
            last = measured if row is history[-1] else {}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            make_folder(self._folder)
            append(self._path, to_lines([{"stage": stage, "time": now, **row, **last}]))
            self._there[stage].add(row["epoch"])

    def _rewind(self, stage: str, epochs: int) -> set[int]:
        """The epochs of a stage that are there and done, after removing all others of it."""
        if not self._path.exists():
            return set()
        content = self._path.read_bytes()
        rows = [
            row
            for row in from_lines(content)
            if row.get("stage") != stage or row.get("epoch", epochs + 1) <= epochs
        ]
        if (kept := to_lines(rows)) != content:
            write(self._path, kept)
        return {row["epoch"] for row in rows if row.get("stage") == stage}
