"""Where a gate is nearly another: a word more, the last image of a margin, the edge of a range."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy.stats import binomtest
from verdict_files import costs, example

from deploy import power
from deploy.errors import DeployError
from deploy.gate import demand_accepted, evaluate, main, read_accepted
from deploy.gate_costs import cost_checks
from deploy.gate_outlook import outlook
from deploy.gate_outputs import refusal_annotations, tell_github, to_junit, write_outputs
from deploy.policies import Terms
from deploy.power import (
    chance_to_ship,
    images_in_words,
    images_to_find,
    images_to_ship,
    minimum_detectable_drop,
)
from deploy.statistics import clopper_pearson, share, tango, upper_tail
from deploy.verdicts import write

# The command -------------------------------------------------------------------------------------


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    write(tmp_path / "here.json", example(sha="b"))
    return tmp_path / "here.json"


def test_a_policy_that_compares_needs_something_to_compare_with(
    verdicts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(verdicts)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gate: policy regress compares; add --baseline FILE, or name")
    with pytest.raises(DeployError, match="policy regress and ship compares"):
        demand_accepted(Terms(("regress", "ship")), None, None)
    demand_accepted(Terms(("regress",)), None, verdicts)
    demand_accepted(Terms(("floor",), floor=0.5), None)


def test_a_baseline_that_is_not_there_is_made_first(verdicts: Path) -> None:
    absent = verdicts.with_name("absent.json")
    with pytest.raises(DeployError, match=r"--release .*absent\.json: no such file") as refusal:
        read_accepted("--release", absent)
    assert refusal.value.exit_code == 12
    assert read_accepted("--baseline", None) is None
    found = read_accepted("--baseline", verdicts)
    assert found is not None and found.artefact == example(sha="b").artefact


@pytest.mark.parametrize(
    "words",
    [
        ["--reason", "why"],
        ["--accept-regression"],
        ["--update-baseline"],
        ["--update-baseline", "--reason", "why"],
        ["--margin", "much"],
    ],
)
def test_words_that_do_not_go_together_are_refused(
    verdicts: Path, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main([str(verdicts), *words])
    assert refusal.value.code == 2
    assert capsys.readouterr().err.startswith("usage: deploy.gate ")


def test_every_option_reaches_the_terms(verdicts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = verdicts.parent / "out"
    folder.mkdir()
    write(verdicts.with_name("base.json"), example())
    write(verdicts.with_name("float.json"), example(sha="c", precision="fp32"))
    words = ["--baseline", str(verdicts.with_name("base.json")), "--release", str(verdicts)]
    words += ["--float", str(verdicts.with_name("float.json")), "--out", str(folder)]
    words += ["--policy", "regress", "--policy", "ship", "--margin", "0.05", "--floor", "0.5"]
    words += ["--ratio", "0.9", "--all-metrics", "--hard", "size", "--hard", "latency"]
    assert main([str(verdicts), *words]) == 11  # sizes are asked for, and nobody has measured any
    content = json.loads((folder / "gate.json").read_text())
    assert content["policies"] == {"regress": 0.05, "ship": 0.05, "floor": 0.5, "ratio": 0.9}
    names = [check["name"] for check in content["checks"]]
    assert names == [
        "worst against baseline",
        "worst against release",
        "worst against baseline (ship)",
        "worst against release (ship)",
        "worst above the floor",
        "worst as a share of fp32",
        *(
            f"{metric} against {against}"
            for against in ("baseline", "release")
            for metric in ("clean", "pgd-ce@finetuned", "square")
        ),
        "size against baseline",
        "latency against baseline",
    ]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gate INCONCLUSIVE"
    assert "  clean against baseline: 97.5 % → 97.5 % (p = 1)" in said


def test_what_decides_nothing_is_for_information(
    verdicts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gate PASS"
    assert "  square against baseline: 80.0 % → 80.0 % (p = 1, for information)" in said
    assert not any("  worst" in line for line in said)


def test_a_baseline_is_written_by_the_command(
    verdicts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    base = verdicts.parent / "deep" / "base.json"
    words = ["--baseline", str(base), "--update-baseline", "--reason", "first"]
    assert main([str(verdicts), *words]) == 0
    assert capsys.readouterr().out.startswith(f"{base}: updated\n")
    worse = verdicts.with_name("worse.json")
    write(worse, example(300, sha="d"))
    assert main([str(worse), *words]) == 10
    assert main([str(worse), *words, "--accept-regression"]) == 0


def test_a_log_that_is_not_utf_8_shows_what_it_can(
    verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    stream = SimpleNamespace(encoding="ascii", write=lines.append)
    monkeypatch.setattr("sys.stdout", stream)
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    assert any("97.5 % ? 97.5 %" in line for line in lines)
    stream.encoding = None  # as of streams that other tools put there
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    assert any("97.5 % → 97.5 %" in line for line in lines)


# What is written down ----------------------------------------------------------------------------


def test_a_check_that_passes_is_a_case_without_anything_in_it() -> None:
    (case,) = ElementTree.fromstring(to_junit(evaluate(example(sha="b"), example()))).iter(
        "testcase"
    )
    assert (case.get("name"), list(case)) == ("worst against baseline", [])


def test_github_without_its_files_is_still_told(tmp_path: Path) -> None:
    told = tell_github(evaluate(example(300, sha="b"), example()), {"GITHUB_ACTIONS": "true"})
    assert [line[:20] for line in told] == ["::error title=gate::"]
    assert list(refusal_annotations(DeployError("gone", 12), {})) == []


# Counting images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 7), (70, 100)])
def test_a_share_comes_with_its_interval(right: int, n: int) -> None:
    found = share([i < right for i in range(n)])
    exact = binomtest(right, n).proportion_ci(0.95, method="exact")
    assert found["value"] == right / n
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_tails_that_are_none() -> None:
    assert (upper_tail(4, 3, 0.5), upper_tail(1, 3, 0.0), upper_tail(0, 3, 0.5)) == (0, 0, 1)


def test_senseless_questions_about_power_are_refused() -> None:
    refused: list[tuple[Any, tuple[float, ...]]] = [
        (images_to_find, (0.0, 0.1)),
        (images_to_find, (1.1, 0.1)),
        (images_to_find, (0.1, 1.1)),
        (chance_to_ship, (0, 0.1, 0.02)),
        (chance_to_ship, (10, 0.1, 0.0)),
        (chance_to_ship, (10, 0.1, 1.0)),
        (chance_to_ship, (10, 0.1, 0.02, 0.11)),
        (chance_to_ship, (10, 0.1, 0.02, -0.01)),
        (chance_to_ship, (10, -0.1, 0.02)),
    ]
    for function, arguments in refused:
        with pytest.raises(ValueError, match=r"images_to_find|chance_to_ship|power"):
            function(*arguments)


def test_a_search_that_finds_no_number_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "MOST", 50)
    assert images_to_ship(0.5, 0.001) == 50
    assert images_in_words(50) == "50 images or more"
    assert images_in_words(49) == "49 images"


@pytest.mark.parametrize("names", [("regress",), ("ship",)])
def test_an_outlook_speaks_of_what_is_asked(names: tuple[str, ...]) -> None:
    found = outlook(360, Terms(names))
    assert found is not None
    shipping = "ship" in names
    assert (found.chance_to_ship is not None) == shipping
    assert len(found.lines) == 1 + shipping
    assert any("ships in" in line for line in found.lines) == shipping


@pytest.mark.parametrize(("times", "warned"), [(1.9, False), (2.0, False), (2.5, True)])
def test_an_outlook_warns_where_drops_of_twice_the_margin_go_unseen(
    times: float, warned: bool
) -> None:
    drop = minimum_detectable_drop(360, 0.05)
    found = outlook(360, Terms(("regress",), margin=drop / times))
    assert found is not None
    assert bool(found.warnings) == warned


@pytest.mark.parametrize(("n", "changed"), [(100, 0.1), (400, 0.05), (1000, 0.3)])
def test_the_detectable_drop_is_the_smallest(n: int, changed: float) -> None:
    drop = minimum_detectable_drop(n, changed)
    assert power._finds(n, drop, changed) >= 0.8 > power._finds(n, drop - 1e-4, changed)


def test_so_many_images_are_wanted_as_the_drop_that_was_seen_takes() -> None:
    for worst, drop in ((319, 1 / 400), (320, 0.0)):
        candidate = example(worst, sha="b")
        if not drop:  # as many better as worse
            candidate.correct["square"][0], candidate.correct["square"][320] = False, True
        result = evaluate(candidate, example(), terms=Terms(("ship",), margin=0.005))
        assert result.primary is not None and result.primary.drop == drop
        assert result.images_to_ship == images_to_ship(result.primary.changed, 0.005, drop)


BEYOND: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
    (clopper_pearson, (1, 2, 0.0)),
    (clopper_pearson, (1, 2, 1.0)),
    (clopper_pearson, (-1, 2)),
    (clopper_pearson, (3, 2)),
    (clopper_pearson, (0, 0)),
    (tango, (1, 1, 2, 0.0)),
    (tango, (1, 1, 2, 1.0)),
    (tango, (-1, 1, 2)),
    (tango, (1, 2, 2)),
    (tango, (0, 0, 0)),
]


@pytest.mark.parametrize(("function", "arguments"), BEYOND)
def test_counts_and_levels_beyond_their_range_are_refused(
    function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=function.__name__):
        function(*arguments)


# Terms, sizes and speeds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms", [{"floor": 1.0}, {"floor": 0.0}, {"ratio": 0.0}, {"margin": 1.0}, {"margin": -0.01}]
)
def test_the_ends_that_make_no_sense_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(DeployError, match="must lie in") as refusal:
        Terms(**terms)
    assert refusal.value.exit_code == 2


def test_the_ends_that_make_sense_are_taken() -> None:
    assert Terms(ratio=1.0).values["ratio"] == 1
    assert Terms(margin=0.0).values == {"regress": 0}


def test_sizes_are_told_in_the_bytes_that_were_compared() -> None:
    size, _ = cost_checks(costs(compressed_bytes=21_001), costs())
    assert size.message == (
        "size against baseline: 20000 → 21001 bytes compressed, +5.0%, allowed 5.0 %"
    )
    size, _ = cost_checks(costs(compressed_bytes=None, bytes=90_000), costs())
    assert size.message == "size against baseline: 100000 → 90000 bytes, -10.0%, allowed 5.0 %"


def test_speeds_are_told_with_all_that_was_seen() -> None:
    (timed,) = cost_checks(None, None, ratios=[1.2, 1.15, 1.11])
    assert timed.message == (
        "latency against baseline: 1.15 times its time, 1.11 to 1.20 over 3 rounds, "
        "timed in turn, allowed 1.10"
    )
    _, recorded = cost_checks(costs(p50_ms=0.09), costs(where="elsewhere"))
    assert recorded.message == (
        "latency against baseline: 0.800 → 0.900 of the float engine's time, 1.12 times"
        f" (elsewhere → {costs()['where']}), allowed 1.10"
    )
    assert "(" not in cost_checks(costs(), costs())[1].message


@pytest.mark.parametrize("rounds", [[1.0, 1.2, 1.2], [1.1, 1.1, 1.1]])
def test_a_slowdown_must_lie_beyond_what_is_allowed(rounds: list[float]) -> None:
    assert [check.status for check in cost_checks(None, None, ratios=rounds)] == ["PASS"]


def test_of_many_differences_three_are_named(verdicts: Path) -> None:
    other = example(seed=1, data="x", images="y", labels="z", input="none")
    with pytest.raises(DeployError) as refusal:
        evaluate(example(sha="b"), other)
    message = str(refusal.value)
    assert message.count(" there, ") == 3
    assert ") and 2 more differ; verify both alike" in message


def test_no_number_that_json_lacks_is_written_down(tmp_path: Path) -> None:
    result = replace(evaluate(example(sha="b"), example()), minimum_detectable_drop=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        write_outputs(result, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_a_baseline_that_cannot_be_made_is_refused(
    verdicts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    words = ["--baseline", str(verdicts / "base.json"), "--update-baseline", "--reason", "why"]
    assert main([str(verdicts), *words]) == 73
    assert "here.json: cannot be created (File exists)" in capsys.readouterr().err
