"""Asked to stop, a run writes a checkpoint, ends soon with 143, and goes on from there."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import NEEDS, Crash
from forkserver import Job
from rich.console import Console
from tiny_run import TINY

from pipeline.checkpoints import Checkpoints
from pipeline.stage import read_artifact
from pipeline.stopping import Stopping
from pipeline.view import View
from pipeline.watch import Watch

pytest_plugins = ["crash_fixtures"]
AT = 5  # the step in which the signal comes


@pytest.mark.parametrize(("endless", "times", "kept"), [(False, 1, 5), (False, 3, 5), (True, 1, 3)])
def test_the_step_ends_with_a_checkpoint_or_is_broken_off(
    endless: bool, times: int, kept: int, crash: Crash, tmp_path: Path
) -> None:
    """Steps 3, 6 and so on have checkpoints anyway; batch systems may ask more than once."""
    stage, (_, parents, place, *_) = "prune", crash.job("prune", tmp_path).args
    end = crash.children.run(Job("dying:stopped", (stage, parents, place, AT, endless, times)))
    assert end.code == 143, end.err
    assert end.err == "terminated; the same command goes on from the last checkpoint\n"
    (left,) = (tmp_path / "runs" / "store").glob(".tmp-*")
    saved = Checkpoints(left, pytest.fail).latest()
    assert saved is not None
    assert saved[0] == kept
    again = crash.build(stage, tmp_path)
    assert again.code == 0
    assert again.result[1] == crash.whole[stage].digest


def test_outside_of_steps_a_run_stops_at_once_and_leaves_no_handler(crash: Crash) -> None:
    end = crash.children.run(Job("dying:asked_at_once"))
    assert end.result == [True, True, True], end.err


def test_whoever_does_not_let_go_ends_all_the_same(crash: Crash) -> None:
    fate = {"kill_after": 0.5, "signal": signal.SIGTERM}
    end = crash.children.run(Job("dying:stubborn", (0.1, 0.3), **fate))
    assert end.code == 143


def test_a_watch_without_anyone_to_ask_saves_at_the_steps_it_is_told(tmp_path: Path) -> None:
    watch = Watch(tmp_path, View("", Console(quiet=True)), Stopping(), every=3)
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
