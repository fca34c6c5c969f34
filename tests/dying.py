"""What is done in processes that die: the stages of a run that takes a second or two."""

import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from resume_mutants import MUTANTS
from stage_runs import Runner, with_settings
from torch import Tensor, nn

from advprune.errors import Refused
from advprune.method import Progress
from export.to_onnx import to_onnx
from pipeline import stopping
from pipeline.cli import main
from pipeline.recipe import Recipe
from pipeline.stage import read_artifact
from pipeline.watch import Watch

torch.set_num_threads(1)
LONG = ("standard", "adversarial", "prune", "finetune", "quantize")
EVERY = 3  # steps between checkpoints
_EPOCHS = 2


def net(num_classes: int) -> nn.Module:
    """Small, with all that a resumed training must bring back: statistics and random layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, num_classes),
    )


def warm_up() -> None:
    """What is imported and cached late takes longer than all that is done here."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(net(10), (1, 8, 8), Path(folder, "model.onnx"))


class Telling(Watch):
    """Says which checkpoints are written."""

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        super().save(step, tensors, history)
        os.write(1, f"{step}\n".encode())


def recipe_with(settings: dict[str, Any]) -> Recipe:
    small = {
        "model": "dying:net",
        "limit_train": 1024,
        "limit_test": 50,
        "attack_steps": 1,
        "sparsity": 0.5,
        "quantize.how": "qat",
        "threads": 1,
        **{f"{stage}.epochs": _EPOCHS for stage in LONG},
        **{f"{stage}.batch_size": 128 for stage in LONG},
    }
    return with_settings(small | settings)


def build(
    stage: str,
    parents: dict[str, str],
    root: str,
    settings: dict[str, Any] | None = None,
    mutant: str | None = None,
) -> tuple[str, str]:
    """Build one stage below `root`, its parents lying elsewhere; its path and its digest.

    Args:
        mutant: of `resume_mutants`, for the rest of this process.
    """
    if mutant is not None:
        MUTANTS[mutant].apply()
    with _told():
        return _build(stage, parents, root, settings or {})


def _runner(parents: dict[str, str], root: str, settings: dict[str, Any]) -> Runner:
    runner = Runner(recipe_with(settings), Path(root))
    runner.made = {name: read_artifact(Path(path)) for name, path in parents.items()}
    return runner


def _build(
    stage: str, parents: dict[str, str], root: str, settings: dict[str, Any]
) -> tuple[str, str]:
    runner = _runner(parents, root, settings)

    def watch(*given: Any) -> Watch:
        return Telling(*given, every=EVERY)

    made = runner.build(stage, watch)
    return str(made.path), made.digest


@contextmanager
def _told() -> Iterator[None]:
    """A refusal as the command line tells it."""
    try:
        yield
    except (Refused, stopping.Terminated) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


def command(*words: str) -> None:
    """`advprune WORDS`."""
    main(list(words))


def hungry(num_classes: int) -> nn.Module:
    """A megabyte for each image of a batch."""
    return nn.Sequential(
        nn.Conv2d(1, 4096, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4096, num_classes),
    )


def stopped(
    stage: str, parents: dict[str, str], root: str, at: int, endless: bool, times: int = 1
) -> None:
    """Build a stage that is asked so often to stop in a step, which may take for ever."""
    runner = _runner(parents, root, {})

    class Asked(Telling):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            super().step(progress, metrics)
            if progress.step == at:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(600 if endless else 0)

    if endless:
        stopping.PATIENCE = 0.05
    with _told(), stopping.stopping() as stop:
        runner.build(stage, lambda *given: Asked(*given, stop=stop, every=EVERY))


def asked_at_once() -> list[bool]:
    """Whether a request was obeyed at once, and handlers and timers were as before afterwards."""
    numbers = (signal.SIGTERM, signal.SIGALRM)
    before, obeyed = [signal.getsignal(number) for number in numbers], False
    try:
        with stopping.stopping():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
    except stopping.Terminated:
        obeyed = True
    after = [signal.getsignal(number) for number in numbers]
    return [obeyed, after == before, signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)]


def stubborn(patience: float, last: float) -> None:
    """Asked to stop, and does not let go."""
    stopping.PATIENCE, stopping.LAST = patience, last
    with stopping.stopping():
        while True:
            with suppress(stopping.Terminated):
                time.sleep(10)
