"""Asked to stop, a run writes a checkpoint, ends soon with 143, and goes on from there."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from crashing import NEEDS, Crash
from forkserver import Job
from rich.progress import Progress as Bar
from stage_runs import SMALL, Runner
from tiny_run import TINY

from advprune.method import Progress
from pipeline import stopping
from pipeline.checkpoints import Checkpoints
from pipeline.stage import read_artifact
from pipeline.stopping import Stopping, Terminated
from pipeline.watch import Watch

pytest_plugins = ["crash_fixtures"]
AT = 5  # the step in which the signal comes


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # the handler runs before the next line


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    runner = Runner(SMALL, tmp_path_factory.mktemp("runs"))
    for name in ("data", "standard", "adversarial"):
        runner.build(name)
    return runner


def stopped(runner: Runner, root: Path, in_step: Callable[[], None]) -> int:
    """Stop a search in a step; the step of the checkpoint that it left."""
    other = Runner(SMALL, root)
    other.made = {k: v for k, v in runner.made.items() if k != "prune"}

    class Asked(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            super().step(progress, metrics)
            if progress.step == AT:
                in_step()

    with stopping.stopping() as stop, pytest.raises(Terminated, match="the same command goes on"):
        other.build("prune", lambda *given: Asked(*given, stop=stop, every=2))
    (left,) = (root / "store").glob(".tmp-prune-*")
    saved = Checkpoints(left, pytest.fail).latest()
    assert saved is not None
    assert other.build("prune").digest == runner.build("prune").digest
    return saved[0]


def test_the_step_ends_with_a_checkpoint(runner: Runner, tmp_path: Path) -> None:
    assert stopped(runner, tmp_path, ask) == AT


def test_a_step_that_takes_too_long_is_broken_off(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "PATIENCE", 0.05)

    def ask_and_go_on() -> None:
        ask()
        time.sleep(30)

    assert stopped(runner, tmp_path, ask_and_go_on) == AT - 1


def test_outside_of_steps_a_run_stops_at_once() -> None:
    with pytest.raises(Terminated), stopping.stopping():
        ask()
        pytest.fail("it went on")


def test_whoever_does_not_let_go_ends_all_the_same(crash: Crash) -> None:
    fate = {"kill_after": 0.5, "signal": signal.SIGTERM}
    end = crash.children.run(Job("dying:stubborn", (0.1, 0.3), **fate))
    assert end.code == 143


def test_handlers_are_as_they_were_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(Terminated), stopping.stopping():
        ask()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    assert after == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_watch_without_anyone_to_ask_saves_at_the_steps_it_is_told(tmp_path: Path) -> None:
    bar = Bar(disable=True)
    watch = Watch(tmp_path, bar, bar.add_task(""), Stopping(), every=3)
    assert [step for step in range(1, 10) if watch.due(step)] == [3, 6, 9]


@pytest.mark.slow
def test_a_whole_run_stopped_again_and_again_ends_as_if_it_had_not_been(
    crash: Crash, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def words(root: Path) -> tuple[str, ...]:
        return ("run", "--runs", str(root), "--model", "dying:net", "--json", *TINY)

    def digests(root: Path) -> dict[str, str]:
        made = {name: next((root / "store").glob(f"{name}-*")) for name in NEEDS}
        return {name: read_artifact(path).digest for name, path in made.items()}

    whole = crash.children.run(Job("dying:command", words(tmp_path / "whole")))
    assert whole.code in (0, 10, 11), whole.err
    draw, stops = random.Random(1), 0
    for trial in range(8):
        root = tmp_path / str(trial)
        for _ in range(3):
            at = draw.uniform(0.05, 0.7) * whole.seconds
            end = crash.children.run(
                Job("dying:command", words(root), kill_after=at, signal=signal.SIGTERM)
            )
            if end.code != 143:
                break
            assert end.seconds - at < 30
            assert "terminated; the same command goes on" in end.out
            stops += 1
        end = crash.children.run(Job("dying:command", words(root)))
        assert end.code == whole.code, end.err
        assert digests(root) == digests(tmp_path / "whole")
    record_property("trials", 8)
    record_property("kills", stops)
    assert stops >= 8
