"""Ten thousand imaginary gates: how often each rule cries wolf, and how often it finds the wolf."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from deploy.outcome import Check, Comparison
from deploy.policies import POLICIES, regress, ship
from deploy.power import (
    chance_to_ship,
    images_to_find,
    images_to_ship,
    minimum_detectable_drop,
)

GATES = 10_000
Rule = Callable[[Comparison, float], Check]


def share_of(
    status: str, rule: Rule, margin: float, n: int, flips: float, drop: float, seed: int = 0
) -> float:
    """How often a rule ends so, where a share of n images flips and accuracy truly falls.

    Each distinct pair of counts is judged once.
    """
    random = np.random.default_rng(seed)
    changed = random.binomial(n, flips, GATES)
    worse = random.binomial(changed, (flips + drop) / (2 * flips))
    pairs, times = np.unique(np.stack([worse, changed - worse]), axis=1, return_counts=True)
    found = 0
    for (w, b), count in zip(pairs.T.tolist(), times.tolist(), strict=True):
        row = Comparison("worst", "baseline", n, 0.8, 0.8 - (w - b) / n, w, b)
        found += count * (rule(row, margin).status == status)
    return found / GATES


@pytest.mark.parametrize("n", [200, 500, 1000, 5000])
@pytest.mark.parametrize("flips", [0.02, 0.05, 0.15])
def test_regress_rarely_fails_without_a_drop(n: int, flips: float) -> None:
    assert share_of("FAIL", regress, 0.01, n, flips, 0.0, seed=n) <= 0.05


def test_regress_finds_what_was_lost() -> None:
    assert share_of("FAIL", regress, 0.01, 1000, 0.05, 0.02) >= 0.8
    assert share_of("FAIL", regress, 0.01, 1000, 0.05, 0.03) >= 0.98


@pytest.mark.parametrize("n", [1000, 2500, 5000])
@pytest.mark.parametrize("flips", [0.05, 0.10, 0.15])
def test_ship_rarely_passes_at_the_margin(n: int, flips: float) -> None:
    assert 0.03 <= share_of("PASS", ship, 0.02, n, flips, 0.02, seed=n) <= 0.055


def test_ship_never_passes_where_it_should_be_stopped() -> None:
    """Far beyond the margin next to none passes, and what `regress` stops does not."""
    assert share_of("PASS", ship, 0.02, 1000, 0.10, 0.04) < 0.001
    stopped = share_of("FAIL", ship, 0.02, 1000, 0.10, 0.04)
    assert stopped == share_of("FAIL", regress, 0.02, 1000, 0.10, 0.04) > 0.5


# What is said before a gate is run --------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 360, 1000])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 1.0])
def test_the_detectable_drop_is_found_in_four_of_five_cases(n: int, share: float) -> None:
    drop = minimum_detectable_drop(n, share)
    random = np.random.default_rng(7)
    changed = random.binomial(n, max(share, drop), 6000)
    worse = random.binomial(changed, (max(share, drop) + drop) / (2 * max(share, drop)))
    found = binom.sf(worse - 1, changed, 0.5) < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 800), st.floats(0, 1))
def test_more_images_detect_smaller_drops(n: int, share: float) -> None:
    drop = minimum_detectable_drop(n, share)
    assert 0 < minimum_detectable_drop(4 * n, share) < drop <= 1


@pytest.mark.parametrize("flips", [0.02, 0.05, 0.15])
def test_so_many_images_ship_in_four_of_five_cases(flips: float) -> None:
    n = images_to_ship(flips, 0.02)
    assert share_of("PASS", ship, 0.02, n, flips, 0.0) == pytest.approx(0.8, abs=0.03)
    assert chance_to_ship(n, flips, 0.02) == pytest.approx(0.8, abs=0.03)
    # The rule of thumb of normal samples, which flatters few flips: 310, 773 and 2319 images.
    thumb = (1.6448536 + 0.8416212) ** 2 * flips / 0.02**2
    assert thumb < n < thumb + 100


def test_what_lost_a_little_needs_more_images() -> None:
    n = images_to_ship(0.05, 0.02, 0.008)
    assert n > 2 * images_to_ship(0.05, 0.02)
    assert share_of("PASS", ship, 0.02, n, 0.05, 0.008) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("n", "flips"), [(200, 0.02), (773, 0.05), (5000, 0.15)])
def test_the_chance_to_ship_is_that_of_the_rule(n: int, flips: float) -> None:
    seen = share_of("PASS", ship, 0.02, n, flips, 0.0, seed=1)
    assert chance_to_ship(n, flips, 0.02) == pytest.approx(seen, abs=0.015)


def test_without_flips_images_alone_are_proof() -> None:
    # 1.645^2 / (n + 1.645^2) falls below 2 % at 133 images.
    assert images_to_ship(0.0, 0.02) == 133
    assert chance_to_ship(132, 0.0, 0.02) == 0.0


@pytest.mark.parametrize(("drop", "flips"), [(0.02, 0.05), (0.05, 0.02), (0.1, 0.3)])
def test_so_many_images_find_a_drop(drop: float, flips: float) -> None:
    n = images_to_find(drop, flips)
    assert minimum_detectable_drop(n, flips) == pytest.approx(drop, abs=5e-4)
    assert minimum_detectable_drop(n // 2, flips) > drop


def test_four_images_detect_nothing() -> None:
    assert minimum_detectable_drop(4, 0.5) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimum_detectable_drop(100, 1.5),
        lambda: minimum_detectable_drop(0, 0.5),
        lambda: images_to_find(0.0, 0.5),
        lambda: chance_to_ship(100, 0.5, 0.0),
        lambda: chance_to_ship(100, 0.1, 0.5, 0.2),
        lambda: images_to_ship(-0.1, 0.02),
    ],
)
def test_questions_without_an_answer_are_refused(call: Callable[[], float]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        call()


def test_the_registry_has_the_margins_that_were_simulated() -> None:
    assert (POLICIES["regress"].value, POLICIES["ship"].value) == (0.01, 0.02)
