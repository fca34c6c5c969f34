"""Promise: the table of goals says what was measured, of contestants timed side by side."""

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("goals")


@pytest.fixture(scope="module")
def times() -> ModuleType:
    return script("side_by_side")


# Side by side -----------------------------------------------------------------------------------


def test_speed_ups_are_of_times_of_the_same_round(times: ModuleType) -> None:
    found = times.ratios({"slow": [8.0, 6.0, 9.0], "fast": [2.0, 3.0, 1.0]})
    assert found == {"slow": [1.0, 1.0, 1.0], "fast": [4.0, 2.0, 9.0]}
    assert times.spread(found["fast"]) == (4.0, 2.0, 3.0, 6.5, 9.0)
    assert times.spread([3.0]) == (3.0,) * 5


def test_contestants_take_turns_after_a_round_that_does_not_count(times: ModuleType) -> None:
    order: list[str] = []

    def contestant(name: str):
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    found = times.race({name: contestant(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert found == {"a": [4.0, 9.0, 10.0], "b": [5.0, 8.0, 11.0], "c": [6.0, 7.0, 12.0]}


def test_a_table_of_times_names_medians_ranges_and_quartiles(times: ModuleType) -> None:
    text = times.table({"slow": [8.0, 6.0, 9.0], "fast": [2.0, 3.0, 1.0]}, images=12)
    assert text.splitlines()[2:] == [
        "| slow | **8** (6-9) | 7-8.5 | **1.0** (1.0-1.0) | 1.0-1.0 | 1.5 |",
        "| fast | **2** (1-3) | 1.5-2.5 | **4.0** (2.0-9.0) | 3.0-6.5 | 6.0 |",
    ]
    assert "images/s" not in times.table({"slow": [1.0]})


# Goals ------------------------------------------------------------------------------------------


def test_every_goal_has_a_row_of_its_own_in_the_results(bench: ModuleType) -> None:
    rows = bench.read_section(bench.SECTION, bench.RESULTS).splitlines()[2:]
    asked = [[cell.strip() for cell in row.split("|")[1:5]] for row in rows]
    assert asked == [[n, g.what, g.against, g.asked] for n, g in bench.GOALS.items()]
    assert len({(goal.what, goal.against) for goal in bench.GOALS.values()}) == len(asked)


def test_outcomes_survive_markdown(bench: ModuleType) -> None:
    goal = bench.Goal("a step", "another", 3.0, lambda: None)
    goals = {"one": goal, "two": goal, "three": goal}
    found = bench.Spread(4.26, 3.1, 4.0, 4.5, 12.3)
    outcomes = {"one": goal.outcome(found), "three": replace(goal, source="x.py").outcome(found)}
    text = bench.to_markdown(goals, outcomes)
    assert bench.from_markdown(text) == outcomes
    assert [line.count("|") for line in text.splitlines()] == [9] * 5
    assert "| two | a step | another | at least 3× | not measured |  |  |  |" in text
    assert outcomes["one"][:3] == ("4.26×", "3.1-12.3", "reached")
    assert torch.__version__ in outcomes["one"].where and outcomes["three"].where == "`x.py`"
    assert bench.from_markdown("") == {}


def test_the_median_decides(bench: ModuleType) -> None:
    goal = bench.Goal("", "", 3.0, lambda: None)
    verdicts = {
        (most, median): replace(goal, most=most).outcome(bench.Spread(median, 1, 1, 9, 9)).verdict
        for most in (False, True)
        for median in (2.9, 3.0, 3.1)
    }
    assert [verdicts[False, m] for m in (2.9, 3.0, 3.1)] == ["missed", "reached", "reached"]
    assert [verdicts[True, m] for m in (2.9, 3.0, 3.1)] == ["reached", "reached", "missed"]


@pytest.fixture
def goals(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two goals, and an empty document of results."""
    path = tmp_path / "RESULTS.md"
    path.write_text("before\n<!-- goals: begin -->\n<!-- goals: end -->\nafter\n")
    monkeypatch.setattr(bench, "RESULTS", path)
    made = {
        name: bench.Goal(name, "", 2.0, lambda v=value: bench.spread([v]))
        for name, value in (("first", 5.0), ("second", 1.0))
    }
    monkeypatch.setattr(bench, "GOALS", made)
    return path


def test_rows_that_are_not_measured_anew_stay(
    bench: ModuleType, goals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["first"])
    first = bench.from_markdown(bench.read_section("goals", goals))
    assert list(first) == ["first"]
    bench.main(["second"])
    both = bench.from_markdown(bench.read_section("goals", goals))
    assert both["first"] == first["first"] and both["second"].verdict == "missed"
    assert list(both) == ["first", "second"]
    text = goals.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "not measured" in capsys.readouterr().out


def test_what_cannot_be_measured_here_is_refused(
    bench: ModuleType, goals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.GOALS["card"] = bench.Goal("", "", 1.0, lambda: 1 / 0, device="cuda")
    before = goals.read_text()
    for name in ("nothing", *(["card"] if not torch.cuda.is_available() else [])):
        with pytest.raises(SystemExit) as refusal:
            bench.main(["first", name])
        assert refusal.value.code == 2
        assert f"'{name}' cannot be measured here" in capsys.readouterr().err
    assert goals.read_text() == before


def test_the_screen_shows_every_goal(bench: ModuleType) -> None:
    shown = StringIO()
    bench.show(bench.GOALS, {}, Console(file=shown, width=80))
    assert all(name in shown.getvalue() for name in bench.GOALS)


def test_quoted_figures_are_those_of_the_documentation(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.md"
    results.write_text(
        "<!-- t: begin -->\n| a | b |\n|---|--:|\n| x | **23.8** (23.4-24.1) |\n| y | 199× |\n"
        "<!-- t: end -->\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["sections"], "RESULTS", results)
        assert bench.quoted("t", "x", 2) == (23.8, 23.4, 23.4, 24.1, 24.1)
        assert bench.quoted("t", "y", 2) == (199.0,) * 5
    quoted = {name: goal.measure() for name, goal in bench.GOALS.items() if goal.source}
    assert set(quoted) == {"autoattack", "latency", "download"}
    assert all(found.low <= found.median <= found.high for found in quoted.values())


# The measurements -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param("training", marks=pytest.mark.slow), "masks", "saliency"]
)
def test_a_measurement_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script(name).main(["--quick", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "| ours" in out and "threads, torch" in out and "fp32" in out


def test_a_step_is_timed_between_the_calls_of_the_observer() -> None:
    training = script("training")
    readings = iter([3.0, 5.0, 9.0])
    setting = replace(training.tiny(training.Setting()), counted=2)
    assert training.ours(setting, lambda: next(readings))() == 3.0


@pytest.mark.parametrize("masks", [True, False])
def test_arithmetic_of_a_step_is_counted(masks: bool) -> None:
    """At least the forwards and backwards that there must be, at most the textbook's."""
    training, growth = script("training"), script("growth")
    setting = training.tiny(training.Setting(masks=masks))
    net = growth.build(setting.architecture).eval()
    forward = 2 * growth.macs(net, setting.architecture.shape) * setting.batch
    # Each of two steps of the attack: forward, and backward to the images; the loss: all three.
    assert 6.5 * forward < training.flops(setting) < 9 * forward


def test_the_reference_and_ours_see_the_same_images() -> None:
    training = script("training")
    setting = training.tiny(training.Setting())
    images = training.random_images(setting)
    assert len(images.train) == 2 * setting.batch
    assert torch.equal(images.train.images, training.random_images(setting).train.images)
    assert training.on("cpu", "HARP").batch == 32


def test_growth_is_a_power(capsys: pytest.CaptureFixture[str]) -> None:
    growth = script("growth")
    sizes = {8: [1.0, 3.0], 16: [2.0, 12.0], 32: [4.0, 48.0]}
    assert growth.exponents(sizes) == pytest.approx([1.0, 2.0])
    assert growth.explained({8: [2.0], 16: [3.0], 32: [5.0]}) == pytest.approx(1.0)
    assert growth.explained({8: [2.0], 16: [3.0], 32: [11.0]}) < 0.99


def test_growth_measures_every_size() -> None:
    growth, training = script("growth"), script("training")
    base = training.tiny(training.Setting())
    assert list(growth.images((2, 4), base, rounds=1)) == [2, 4]
    small, whole = growth.arithmetic((0.5, 1.0), base, rounds=1)
    assert 3.5 < whole / small < 4.5
    assert list(growth.scores((10, 20), rounds=2)) == [10, 20]


@pytest.mark.slow
def test_growth_of_verification_is_measured() -> None:
    growth = script("growth")
    settings = growth.Settings(steps=1, restarts=1, queries=1, fmn=1, health=2)
    found = growth.verification((4, 6), settings, rounds=1)
    assert all(seconds > 0.0 for (seconds,) in found.values())


def test_stages_are_read_from_their_manifests(tmp_path: Path) -> None:
    for stage, seconds in (("data", 0.5), ("prune", 7.0)):
        folder = tmp_path / "store" / f"{stage}-123"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"stage": stage, "seconds": seconds}))
    assert list(script("preset").stages(tmp_path).items()) == [("prune", 7.0), ("data", 0.5)]


def test_a_command_is_measured_as_a_whole() -> None:
    code, seconds, peak = script("preset").command(["--help"])
    assert code == 0 and seconds > 0.0 and 5e6 < peak < 1e9
