"""A run in TensorBoard: event files below RUNS/tensorboard/RUN.

Written in the thread that calls and by what writes all other files: TensorBoard's own writer fails
in a thread of its own, with a traceback on the screen. Each process has a file of its own, since
the last one's may be torn.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from advprune.files import append
from pipeline.files import make_folder

FOLDER = "tensorboard"
_VERSION = "brain.Event:2"  # what readers expect first in a file


class Record:
    """See `pipeline.tracking.Tracker`."""

    def begin(self, runs: Path, run: str, recipe: Mapping[str, str]) -> None:
        self._folder = runs / FOLDER / run
        stamp = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = self._folder / f"events.out.tfevents.{stamp}"
        self._there = _read(self._folder)
        if not self._there:
            lines = "".join(f"    {key} = {value}\n" for key, value in recipe.items())
            self._add(0, [summary.text("recipe", lines)])

    def steps(self, name: str) -> set[int]:
        return self._there.get(name, set())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [summary.scalar(name, value) for name, value in values.items()])

    def verdict(self, word: str, report: Path) -> None:
        if not self.steps("verdict/text_summary"):
            self._add(0, [summary.text("verdict", word)])

    def end(self, status: str) -> None:
        """A file of events has no end."""

    def _add(self, step: int, summaries: list[Summary]) -> None:
        now, first = time.time(), not self._file.exists()
        events = [Event(wall_time=now, file_version=_VERSION)] if first else []
        events += [Event(wall_time=now, step=step, summary=made) for made in summaries]
        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        make_folder(self._folder)
        append(self._file, buffer.getvalue())


def _read(folder: Path) -> dict[str, set[int]]:
    """The steps of every tag that is there, whichever process wrote it."""
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    found = {tag: {event.step for event in events.Scalars(tag)} for tag in tags["scalars"]}
    return found | {tag: {event.step for event in events.Tensors(tag)} for tag in tags["tensors"]}
