"""Where a gate is nearly another: the engine timed before it, the last image of a margin."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import binomtest
from verdict_files import example

from deploy import gate_speed, power
from deploy.errors import DeployError
from deploy.files import sha256
from deploy.gate import demand_accepted, evaluate, main, read_accepted
from deploy.gate_outlook import outlook
from deploy.gate_outputs import refusal_annotations, tell_github, to_junit
from deploy.policies import Terms
from deploy.power import chance_to_ship, images_in_words, images_to_find, images_to_ship
from deploy.statistics import share, upper_tail
from deploy.verdicts import write

IMAGES = np.zeros((3, 1, 8, 8), np.float32)


@pytest.fixture
def engines(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("new", "old"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "new", tmp_path / "old"


def test_engines_are_timed_in_turn_and_their_medians_divided(
    engines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[tuple[list[str], int, float]] = []

    def interleaved(models: dict[str, str], images: object, warmup_s: float, calls: int) -> object:
        assert images is IMAGES
        rounds.append(([models["new"], models["old"]], calls, warmup_s))
        took = {"new": 3.0 * len(rounds), "old": 2.0}
        return {name: SimpleNamespace(p50_ms=ms) for name, ms in took.items()}

    monkeypatch.setattr(gate_speed, "load", lambda path: path.name)
    monkeypatch.setattr(gate_speed, "interleaved", interleaved)
    baseline = example()
    baseline.artefact["sha256"] = sha256(engines[1])
    assert gate_speed.ratios(*engines, baseline, IMAGES) == [1.5, 3.0, 4.5, 6.0, 7.5]
    assert rounds == [(["new", "old"], 100, 0.1)] * 5


def test_another_engine_than_the_baseline_s_is_not_timed(
    engines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_speed, "load", lambda path: pytest.fail("it was loaded"))
    baseline = example(sha="b")
    with pytest.raises(DeployError) as refusal:
        gate_speed.ratios(*engines, baseline, IMAGES)
    assert refusal.value.exit_code == 12
    assert f"has digest {sha256(engines[1])[:12]}, the baseline is about" in str(refusal.value)
    with pytest.raises(DeployError, match=r"--previous .*gone: no such file; give the bas") as gone:
        gate_speed.ratios(engines[0], engines[1].with_name("gone"), baseline, IMAGES)
    assert gone.value.exit_code == 66


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
