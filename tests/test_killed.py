"""A run that is killed, wherever and however often, ends as if it had not been."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashing import NEEDS, Crash
from resume_mutants import MUTANTS

from advprune.method import get, names
from pipeline.checkpoints import Checkpoints
from pipeline.stage import MANIFEST
from pipeline.store import checkpoints_in

pytest_plugins = ["crash_fixtures"]
Record = Callable[[str, object], None]
KILLS = 5  # at most, before a trial is left in peace


def survive(crash: Crash, stage: str, root: Path, draw: random.Random, **settings: object) -> int:
    """Kill a stage at random times until it has ended; how often that was.

    It must end in the bits of the stage that nobody disturbed.
    """
    whole = crash.undisturbed(stage, root / "whole", settings) if settings else crash.whole[stage]
    kills = 0
    while True:
        fate = {"kill_after": draw.uniform(0, 0.6) * whole.seconds} if kills < KILLS else {}
        end = crash.build(stage, root, settings, **fate)
        if end.code == 0:
            break
        assert end.code == -9, end.err
        kills += 1
    assert end.code == 0, end.err
    assert end.result[1] == whole.digest
    # Nothing is left of the attempts.
    assert [path.name for path in (root / "runs" / "store").iterdir()] == [Path(end.result[0]).name]
    return kills


@pytest.mark.parametrize(
    ("stage", "trials"),
    [
        *((stage, 3) for stage in NEEDS if stage != "quantize"),  # which takes ten times as long
        *(pytest.param(stage, 25, marks=pytest.mark.slow) for stage in NEEDS),
    ],
)
def test_a_stage_that_is_killed_at_any_time_ends_in_the_same_bits(
    stage: str, trials: int, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    draw = random.Random(f"{stage} {trials}")
    kills = sum(survive(crash, stage, tmp_path / str(trial), draw) for trial in range(trials))
    record_property("trials", trials)
    record_property("kills", kills)
    assert kills >= trials


@pytest.mark.slow
@pytest.mark.parametrize("method", names())
def test_the_search_of_every_method_survives_being_killed(
    method: str, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    draw = random.Random(method)
    # The network has few channels to lose.
    least = {"options.min_channels": 1, "options.round_to": 1}
    settings = least if "min_channels" in get(method).model_fields else {}
    kills = sum(
        survive(crash, "prune", tmp_path / str(trial), draw, method=method, **settings)
        for trial in range(5)
    )
    record_property("trials", 5)
    record_property("kills", kills)


def lost(crash: Crash, stage: str, root: Path, number: int, *given: Any) -> bool:
    """Kill a stage in the middle of its n-th write, flush, rename or removal.

    Whether it lost a checkpoint that was there before.
    """
    end = crash.build(stage, root, *given, fault_at=number)
    assert end.code == -9, (number, end)
    saved = [int(line) for line in end.out.splitlines()]
    for folder in (root / "runs" / "store").glob(".tmp-*"):
        if not (folder / MANIFEST).exists():
            latest = Checkpoints(folder, lambda line: None).latest()
            return bool(saved) and (latest is None or latest[0] < saved[-1])
    return False  # it had not begun, or it was complete


@pytest.mark.parametrize(
    ("stage", "every"),
    [("prune", 9), *(pytest.param(s, 1, marks=pytest.mark.slow) for s in NEEDS)],
)
def test_a_stage_that_is_killed_in_any_write_goes_on_from_the_one_before(
    stage: str, every: int, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    whole = crash.whole[stage]
    assert whole.operations > 10
    numbers = range(1, whole.operations + 1, every)
    for number in numbers:
        root = tmp_path / str(number)
        assert not lost(crash, stage, root, number), number
        again = crash.build(stage, root)
        assert again.code == 0, (number, again.err)
        assert again.result[1] == whole.digest, number
    record_property("trials", len(numbers))
    record_property("kills", len(numbers))
    assert not checkpoints_in(Path(whole.path))


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_resumption_that_forgets_anything_is_found_out(
    name: str, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    mutant, draw = MUTANTS[name], random.Random(name)
    given = mutant.settings, name
    whole = crash.undisturbed(mutant.stage, tmp_path / "whole", *given)
    for trial in range(1, 26):
        root = tmp_path / str(trial)
        gone = lost(crash, mutant.stage, root, draw.randint(1, whole.operations), *given)
        again = crash.build(mutant.stage, root, *given)
        assert again.code == 0, again.err  # it forgets, it does not break
        if gone or again.result[1] != whole.digest:
            record_property("trials", trial)
            return
    pytest.fail(f"a resumption that forgets its {name} was not found out in 25 trials")
