"""Where the figures of a gate are nearly others: the last image of a margin, the end of a range."""

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from verdict_files import costs, example

from deploy import gate_speed, power
from deploy.errors import DeployError
from deploy.gate import evaluate
from deploy.gate_costs import cost_checks
from deploy.gate_outlook import outlook
from deploy.outcome import Comparison, percent, points
from deploy.policies import Terms, floor, ratio
from deploy.power import (
    chance_to_ship,
    images_in_words,
    images_to_find,
    images_to_ship,
    minimum_detectable_drop,
)
from deploy.statistics import clopper_pearson, probability, share, tango, upper_tail

# Counting images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 7), (70, 100)])
def test_a_share_comes_with_its_interval(right: int, n: int) -> None:
    found = share([i < right for i in range(n)])
    exact = binomtest(right, n).proportion_ci(0.95, method="exact")
    assert found["value"] == right / n
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_tails_that_are_none() -> None:
    assert (upper_tail(4, 3, 0.5), upper_tail(1, 3, 0.0), upper_tail(0, 3, 0.5)) == (0, 0, 1)
    assert [probability(k, 3, 0.0) for k in range(4)] == [1, 0, 0, 0]
    assert [probability(k, 3, 1.0) for k in range(4)] == [0, 0, 0, 1]


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


@pytest.mark.parametrize(("right", "n"), [(660, 1000), (95, 100), (7, 9)])
def test_the_floor_is_held_with_95_percent_on_either_side(right: int, n: int) -> None:
    flags = [i < right for i in range(n)]
    exact = binomtest(right, n).proportion_ci(0.90, method="exact")
    assert floor(flags, exact.low - 1e-9).status == "PASS"
    assert floor(flags, exact.low + 1e-9).status == "INCONCLUSIVE"
    assert floor(flags, exact.high - 1e-9).status == "INCONCLUSIVE"
    failed = floor(flags, exact.high + 1e-9)
    assert failed.status == "FAIL"
    assert f"worst case {percent(right / n)} of {n} images: at most" in failed.message


def test_a_ratio_is_told_as_a_share() -> None:
    check = ratio(Comparison("worst", "fp32", 400, 0.8, 0.75, 20, 0), 0.9)
    assert "0.9375 ≥ 0.9 of fp32, point values" in check.message


def test_points_are_hundredths() -> None:
    assert (points(0.5), percent(0.5), points(-0.25)) == ("50.0 pp", "50.0 %", "-25.0 pp")


def test_the_strictest_margin_counts_for_the_other_metrics() -> None:
    candidate = example(sha="b")
    candidate.correct["clean"] = [i < 383 for i in range(400)]  # 1.75 points lost, p = 1/128
    found = evaluate(candidate, example(), terms=Terms(("regress", "ship"), all_metrics=True))
    clean = next(check for check in found.checks if check.name.startswith("clean"))
    assert (clean.status, "> 1.0 pp" in clean.message) == ("FAIL", True)


def test_what_can_be_detected_is_told_of_the_primary_metric() -> None:
    candidate = example(318, sha="b")
    candidate.correct["clean"] = [i < 340 for i in range(400)]
    found = evaluate(candidate, example())
    assert found.minimum_detectable_drop == minimum_detectable_drop(400, 2 / 400)
    told = points(minimum_detectable_drop(400, 2 / 400))
    assert f"the smallest drop that this test finds in four of five cases: {told}" in found.lines


def test_to_ship_takes_as_many_images_as_the_harder_comparison() -> None:
    candidate, terms = example(319, sha="b"), Terms(("ship",), margin=0.008)
    wanted = [
        evaluate(candidate, example(worst), terms=terms).images_to_ship for worst in (320, 321)
    ]
    both = evaluate(candidate, example(320), release=example(321), terms=terms).images_to_ship
    assert wanted[0] is not None and wanted[1] is not None and wanted[0] < wanted[1]
    assert both == wanted[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, " here) differs; verify"),
        ({"seed": 1, "data": "x"}, " here) differ; verify"),
        ({"seed": 1, "data": "x", "images": "y"}, " here) differ; verify"),
        (
            {"seed": 1, "data": "x", "images": "y", "labels": "z"},
            " here) and 1 more differ; verify",
        ),
    ],
)
def test_differences_are_counted(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DeployError, match=re.escape(said)) as refusal:
        evaluate(example(sha="b"), example(**changes))
    assert refusal.value.exit_code == 12


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"margin": 1.0}, "did you mean 0.01?"),
        ({"margin": 100}, "did you mean 1?"),
        ({"margin": 100.5}, "got 100.5; give a fraction"),
        ({"margin": math.nan}, "got nan; give a fraction"),
        ({"margin": -1}, "got -1; give a fraction"),
        ({"ratio": 1.01}, "did you mean 0.0101?"),
        ({"policies": ("regres",)}, "did you mean regress?"),
        ({"policies": ("shp",)}, "did you mean ship?"),
        ({"policies": ("fl",)}, "did you mean floor?"),
        ({"policies": ("xyz",)}, "choose from regress, ship, floor, ratio"),
        ({"hard": ("sise",)}, "hard 'sise' is not known; did you mean size?"),
    ],
)
def test_a_slip_is_met_with_what_was_meant(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(DeployError, match=re.escape(said)):
        Terms(**terms)


def test_engines_are_timed_long_enough_and_named_briefly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(b"engine")
    digest = hashlib.sha256(b"engine").hexdigest()
    told: list[dict[str, float]] = []

    def interleaved(models: object, images: object, **settings: float) -> object:
        told.append(settings)
        return {name: SimpleNamespace(p50_ms=1.0) for name in ("new", "old")}

    monkeypatch.setattr(gate_speed, "load", lambda path: path)
    monkeypatch.setattr(gate_speed, "interleaved", interleaved)
    baseline, images = example(), np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(DeployError) as refusal:
        gate_speed.ratios(tmp_path / "new", tmp_path / "old", baseline, images)
    assert f"has digest {digest[:12]}, the baseline is about {'a' * 12} (" in str(refusal.value)
    baseline.artefact["sha256"] = digest
    gate_speed.ratios(tmp_path / "new", tmp_path / "old", baseline, images)
    assert told == 5 * [{"warmup_s": 0.1, "calls": 100}]
