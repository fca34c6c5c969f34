"""A line per epoch while a stage trains; whatever ends it, none is lost and none is twice there."""

import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from crashing import Crash
from rich.console import Console
from stage_runs import SMALL, Runner, with_settings

import pipeline.run
from advprune.method import Progress
from pipeline.lines import METRICS, PROGRESS, ProgressLog, from_lines, to_lines
from pipeline.plan import plan
from pipeline.run import Outcome, execute
from pipeline.screen import Screen
from pipeline.stage import MANIFEST
from pipeline.watch import Watch

pytest_plugins = ["crash_fixtures"]
Record = Callable[[str, object], None]
STAGES = ("data", "standard", "adversarial", "prune")
RECIPE = with_settings(
    {
        "method": "hydra",
        "model": "dying:net",
        "standard.epochs": 3,
        "adversarial.epochs": 2,
        "prune.epochs": 2,
    },
    SMALL,
)
EPOCHS = [("standard", 3), ("adversarial", 2), ("prune", 2)]
CLOCKS = {"time", "seconds", "images_per_second"}


def rows(path: Path) -> list[dict[str, Any]]:
    """Every line, strictly."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clocks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


# One stage --------------------------------------------------------------------------------------


def test_who_follows_the_file_sees_each_epoch_when_it_is_measured(tmp_path: Path) -> None:
    runner = Runner(RECIPE, tmp_path)
    runner.build("data")
    seen: list[int] = []
    followed: list[str] = []

    class Following(Watch):
        def epoch(self, history: list[dict]) -> None:
            super().epoch(history)
            (path,) = tmp_path.glob(f"store/.tmp-*/{METRICS}")
            if not followed:
                self.file = path.open()
            followed.append(self.file.read())  # goes on where it was, as `tail -f` does
            seen.append(len(rows(path)))
            if len(history) == RECIPE.standard.epochs:
                self.file.close()

    made = runner.build("standard", Following)
    assert seen == [1, 2, 3]
    assert [text.count("\n") for text in followed] == [1, 1, 1]
    assert "".join(followed) == (made.path / METRICS).read_text()
    assert METRICS in made.manifest["files"]
    assert [row["epoch"] for row in rows(made.path / METRICS)] == [1, 2, 3]
    assert not any(CLOCKS & row.keys() for row in rows(made.path / METRICS))


def test_a_stage_that_goes_on_has_the_lines_of_before_at_once(tmp_path: Path) -> None:
    runner, seen = Runner(RECIPE, tmp_path), []
    runner.build("data")

    class Interrupted(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            super().step(progress, metrics)
            if progress.step > 2 * progress.epoch_steps:
                raise KeyboardInterrupt

    class Resumed(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            super().step(progress, metrics)
            if not seen:
                (path,) = tmp_path.glob(f"store/.tmp-*/{METRICS}")
                seen.extend(row["epoch"] for row in rows(path))

    with pytest.raises(KeyboardInterrupt):
        runner.build("standard", Interrupted)
    runner.build("standard", Resumed)
    assert seen == [1, 2]


def complete_lines(root: Path, stage: str) -> list[str] | None:
    """The lines, but a torn last one, of a stage that is being made; None if it has no file."""
    for folder in (root / "runs" / "store").glob(f".tmp-{stage}-*"):
        path = folder / METRICS
        if path.exists() and not (folder / MANIFEST).exists():
            return path.read_text().splitlines(keepends=True)
    return None


@pytest.mark.parametrize(
    ("stage", "trials"),
    [("adversarial", 3), ("finetune", 3), pytest.param("prune", 25, marks=pytest.mark.slow)],
)
def test_a_stage_killed_at_random_times_has_the_lines_of_one_that_was_not(
    stage: str, trials: int, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    draw, whole, kills = random.Random(stage), crash.whole[stage], 0
    expected = (Path(whole.path) / METRICS).read_text()
    for trial in range(trials):
        root = tmp_path / str(trial)
        for _ in range(4):
            after = draw.uniform(0, 0.8) * whole.seconds
            if crash.build(stage, root, kill_after=after).code == 0:
                break
            kills += 1
            left = complete_lines(root, stage) or []
            assert expected.startswith("".join(left)), "what is there is what will be there"
        end = crash.build(stage, root)
        assert end.code == 0, end.err
        assert (Path(end.result[0]) / METRICS).read_text() == expected
        assert end.result[1] == whole.digest
    record_property("trials", trials)
    record_property("kills", kills)
    assert kills > 0


# A whole run ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def only_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.run, "plan", lambda recipe: plan(recipe)[: len(STAGES)])


def run(root: Path) -> Outcome:
    return execute(RECIPE, {}, root, Screen(Console(file=io.StringIO())), checkpoint_steps=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.run, "plan", lambda recipe: plan(recipe)[: len(STAGES)])
        return run(tmp_path_factory.mktemp("whole"))


def test_a_run_has_a_line_for_every_epoch_of_every_stage_with_rates_and_times(
    whole: Outcome,
) -> None:
    lines = rows(whole.folder / PROGRESS)
    expected = [(stage, epoch) for stage, count in EPOCHS for epoch in range(1, count + 1)]
    assert [(line["stage"], line["epoch"]) for line in lines] == expected
    assert all(line.keys() >= CLOCKS for line in lines)
    assert all(line["images_per_second"] > 0 for line in lines)
    for stage, _ in EPOCHS:
        told = [line for line in without_clocks(lines) if line.pop("stage") == stage]
        assert told == rows(whole.artifacts[stage].path / METRICS)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_interrupted_in_random_steps_has_each_line_once(
    seed: int, whole: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    steps_left = 0

    class Interrupted(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            nonlocal steps_left
            super().step(progress, metrics)
            steps_left -= 1
            if not steps_left:
                raise KeyboardInterrupt

        def epoch(self, history: list[dict]) -> None:
            super().epoch(history)
            if draw.random() < 0.2:  # the line is there, the checkpoint that knows of it is not
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.run, "Watch", Interrupted)
        for _ in range(4):
            steps_left = draw.randint(1, 30)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path)
        (path,) = tmp_path.glob(f"*/{PROGRESS}")
        with path.open("a") as file:
            file.write('{"epoch": 9, "sta')  # and a process was killed while it wrote
    outcome = run(tmp_path)
    assert outcome.folder.name == whole.folder.name
    told = rows(outcome.folder / PROGRESS)
    assert without_clocks(told) == without_clocks(rows(whole.folder / PROGRESS))
    for stage in STAGES:
        assert outcome.artifacts[stage].digest == whole.artifacts[stage].digest
    before = (outcome.folder / PROGRESS).read_bytes()
    assert run(tmp_path).ran == []
    assert (outcome.folder / PROGRESS).read_bytes() == before, "what is cached adds nothing"


# The log by itself ------------------------------------------------------------------------------


def test_a_log_forgets_what_is_to_be_done_again_and_fills_in_what_is_missing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    history = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 5)]
    log = ProgressLog(folder)
    log.tell("standard", [], {})
    assert not folder.exists(), "nothing is made for nothing"
    for count in (1, 2, 3):
        log.tell("standard", history[:count], {"seconds": count})
    log.tell("prune", history[:1], {"seconds": 9})
    path = folder / PROGRESS
    # The line of the second epoch was lost, and the third is to be trained once more.
    path.write_bytes(to_lines([row for row in rows(path) if row["epoch"] != 2]))
    log = ProgressLog(folder)
    log.tell("standard", history[:2], {})
    log.tell("standard", history[:3], {"seconds": 7})
    found = [(row["stage"], row["epoch"], row.get("seconds")) for row in rows(path)]
    assert found == [
        ("standard", 1, 1),
        ("prune", 1, 9),
        ("standard", 2, None),
        ("standard", 3, 7),
    ]


def test_what_is_no_line_is_passed_over() -> None:
    content = b'{"epoch": 1}\n\xff\xfe\n[1]\n\n{"epoch": 2}\n{"epoch": 3'
    assert from_lines(content) == [{"epoch": 1}, {"epoch": 2}]
