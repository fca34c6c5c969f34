"""Where the time of a run went: seconds by span, operations, memory, and a trace of a few steps.

It watches and changes nothing: a stage gives the same files with and without.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from advprune.flops import Flops
from advprune.method import Progress
from advprune.observer import Observer, Saved, Tensors
from advprune.spans import Times
from pipeline.memory import largest

PROFILING = "profiling"  # the span of what only the profile costs
TRAINING = ("data", "attack", "loss", "backward", "ranks", "optimiser", "masks", "scores")
_TRACED = 3  # steps


@dataclass
class StageProfile:
    """Of one stage, as far as this process ran it.

    Attributes:
        seconds: by span; together the seconds of the stage.
        memory: bytes, the largest resident set of the process during the stage.
        steps: training steps whose time is in `seconds`: all but those that were counted or traced.
        operations: of these steps, by type; empty where nothing was trained.
        trace: a gzipped Chrome trace.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    steps: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    trace: bytes | None = None

    @property
    def training(self) -> float:
        """The seconds of the `steps`."""
        return sum(self.seconds.get(name, 0.0) for name in TRAINING)


class Profile:
    """Of a run on a device; `stages` has those that this process ran."""

    def __init__(self, device: str) -> None:
        # Read at the first trace: below this, the tracer writes its log among the run's own lines.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        self.device = device
        self.stages: dict[str, StageProfile] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[Observer], Observer]]:
        """Profile a stage; what is given makes its observer one that looks into its steps."""
        found = StageProfile()
        on_gpu = self.device.startswith("cuda")
        times = Times(partial(torch.cuda.synchronize, self.device)) if on_gpu else Times()
        _forget_the_largest()
        # Whatever a stage that breaks off has left open is closed.
        with times.listening(), ExitStack() as open_ones:

            def watched(observer: Observer) -> Observer:
                return _Steps(observer, found, times, open_ones, on_gpu)

            yield watched
        found.seconds, found.memory = times.seconds, largest()
        self.stages[name] = found


class _Steps:
    """Counts the operations of a step in every epoch and traces a few steps in the middle.

    The second one of an epoch stands for its others: attacks may grow from epoch to epoch, and the
    first step of all has things to prepare.

    Args:
        open_ones: closed when the stage ends.
    """

    def __init__(
        self, inner: Observer, found: StageProfile, times: Times, open_ones: ExitStack, on_gpu: bool
    ) -> None:
        self._inner, self._found, self._times = inner, found, times
        self._open, self._on_gpu = open_ones, on_gpu
        self._flops: Flops | None = None  # while a step is counted
        self._of_a_step: dict[str, int] = {}
        self._owed = 0  # timed steps whose operations are not known yet
        self._traced = False
        self._until = 0  # the step that ends what looks into steps now; 0 while nothing does

    def stepping(self) -> AbstractContextManager[None]:
        return self._inner.stepping()

    def restore(self) -> Saved | None:
        return self._inner.restore()

    def due(self, step: int) -> bool:
        return self._inner.due(step)

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self._inner.save(step, tensors, history)

    def epoch(self, history: list[dict]) -> None:
        self._inner.epoch(history)

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        return self._inner.kept(name, make)

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._inner.step(progress, metrics)
        if not self._until:
            self._found.steps += 1
            self._owed += 1
        elif progress.step >= self._until:
            self._open.close()
            self._until = 0
            if self._flops is not None:
                self._of_a_step, self._flops = self._flops.by_type, None
        self._credit()
        left = progress.steps - progress.step
        if self._until or not left:
            return
        if progress.step % progress.epoch_steps == 1:
            self._flops = Flops()
            self._look_until(progress.step + 1, self._flops)
        elif left <= progress.steps // 2 and not self._traced:
            self._traced = True
            self._look_until(progress.step + min(left, _TRACED), self._tracing())

    def _credit(self) -> None:
        """What timed steps have cost, as soon as a step has been counted."""
        if self._of_a_step:
            found = self._found.operations
            for kind, count in self._of_a_step.items():
                found[kind] = found.get(kind, 0) + count * self._owed
            self._owed = 0

    def _look_until(self, step: int, looking: AbstractContextManager[object]) -> None:
        self._until = step
        self._times.put_on(PROFILING)
        self._open.callback(self._times.put_on, None)
        self._open.enter_context(looking)

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_gpu
        with profile(activities=activities) as tracer:
            yield
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json.gz")
            tracer.export_chrome_trace(str(path))
            self._found.trace = path.read_bytes()


def _forget_the_largest() -> None:
    """Let the kernel begin anew with the peak of the resident set, where it does that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
