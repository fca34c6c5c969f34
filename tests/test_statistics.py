"""Intervals and tests equal scipy's, and the gate's rule rarely cries wolf."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from deploy.gate import MARGIN, regress
from deploy.outcome import Comparison
from deploy.statistics import clopper_pearson, mcnemar_exact, minimum_detectable_drop

GRID = [(k, n) for n in (1, 2, 7, 360, 1000) for k in {0, 1, n // 3, n // 2, n - 1, n}]
GRID += [(k, 10_000) for k in (0, 1, 57, 5000, 8854, 9999, 10_000)]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), sorted(GRID))
def test_the_interval_is_the_beta_quantile(successes: int, n: int, confidence: float) -> None:
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, successes, n - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, n - successes) if successes < n else 1.0
    assert clopper_pearson(successes, n, confidence) == pytest.approx((low, high), abs=1e-11)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = clopper_pearson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    assert clopper_pearson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-15)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.885])
def test_the_interval_covers_at_least_what_it_says(share: float) -> None:
    n = 120
    bounds = [clopper_pearson(k, n) for k in range(n + 1)]
    covered = sum(
        binom.pmf(k, n, share) for k, (low, high) in enumerate(bounds) if low <= share <= high
    )
    assert covered >= 0.95


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9)])
def test_counts_out_of_range_are_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="clopper_pearson"):
        clopper_pearson(successes, n, confidence)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_is_the_one_sided_binomial_test(worse: int, better: int) -> None:
    expected = 1.0
    if worse + better:
        expected = binomtest(worse, worse + better, 0.5, alternative="greater").pvalue
    if expected < 1e-200:
        # scipy gives zero from about 1e-250 down; integers do not.
        n = worse + better
        expected = sum(math.comb(n, k) for k in range(better + 1)) / 2**n
    assert mcnemar_exact(worse, better) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_at_ten_thousand_changes() -> None:
    expected = binomtest(5100, 10_000, 0.5, alternative="greater").pvalue
    assert mcnemar_exact(5100, 4900) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(10_000, 0) == 0.0  # 2**-10000 is below every float
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 3)


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


def test_four_images_detect_nothing() -> None:
    assert minimum_detectable_drop(4, 0.5) == 1.0
    with pytest.raises(ValueError, match="minimum_detectable_drop"):
        minimum_detectable_drop(100, 1.5)


def _fails(n: int, worse: int, better: int) -> bool:
    comparison = Comparison("worst", "baseline", n, 0.8, 0.8 - (worse - better) / n, worse, better)
    return regress(comparison, MARGIN).status == "FAIL"


@pytest.mark.parametrize("n", [200, 500, 1000, 5000])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.15])
def test_the_rule_rarely_fails_without_a_drop(n: int, share: float) -> None:
    random = np.random.default_rng(n)
    changed = random.binomial(n, share, 3000)
    worse = random.binomial(changed, 0.5)
    alarms = [_fails(n, int(w), int(c - w)) for c, w in zip(changed, worse, strict=True)]
    assert np.mean(alarms) <= 0.05


def test_the_rule_catches_a_real_drop() -> None:
    random = np.random.default_rng(3)
    changed = random.binomial(1000, 0.05, 1000)
    worse = random.binomial(changed, (0.05 + 0.03) / 0.10)  # 3 points lost
    alarms = [_fails(1000, int(w), int(c - w)) for c, w in zip(changed, worse, strict=True)]
    assert np.mean(alarms) >= 0.98
