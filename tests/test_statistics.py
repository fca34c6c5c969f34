"""Intervals and tests equal scipy's, or a plain definition solved by it."""

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import xlogy
from scipy.stats import beta, binom, binomtest, norm

from deploy.statistics import clopper_pearson, holm, mcnemar_exact, tango

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


# Tango's interval -------------------------------------------------------------------------------


def _likeliest(worse: int, better: int, n: int, drop: float) -> float:
    """The share of better images that makes the counts likeliest under a supposed drop."""

    def surprise(share: float) -> float:
        counts = (worse, better, n - worse - better)
        shares = (share + drop, share, 1 - 2 * share - drop)
        return -sum(xlogy(k, p) for k, p in zip(counts, shares, strict=True))

    low, high = max(0.0, -drop), (1 - drop) / 2
    # The likelihood is flat at its top: its slope tells where that is to more digits than it does.
    found = minimize_scalar(surprise, bounds=(low, high), method="bounded").x  # pyright: ignore

    def slope(share: float) -> float:
        rest = n - worse - better
        return worse / (share + drop) + better / share - 2 * rest / (1 - 2 * share - drop)

    inside = 1e-9 * (high - low)
    if slope(low + inside) < 0:
        return low
    if slope(high - inside) > 0:
        return high
    exact = float(brentq(slope, low + inside, high - inside, xtol=1e-16))  # pyright: ignore
    assert exact == pytest.approx(found, abs=1e-4)
    return exact


def _score(worse: int, better: int, n: int, drop: float) -> float:
    share = _likeliest(worse, better, n, drop)
    variance = n * ((share + drop) + share - drop**2)
    return (worse - better - n * drop) / math.sqrt(variance)


PAIRS = [(43, 5, 1000), (5, 43, 1000), (12, 12, 360), (1, 0, 50), (0, 1, 50), (30, 20, 120)]
PAIRS += [(9, 0, 400), (0, 9, 400), (140, 130, 2000), (250, 200, 10_000)]


@pytest.mark.parametrize(("worse", "better", "n"), PAIRS)
def test_the_score_interval_solves_the_constrained_likelihood(
    worse: int, better: int, n: int
) -> None:
    low, high = tango(worse, better, n)
    seen, beyond = (worse - better) / n, norm.ppf(0.95)
    edge = 1e-9
    upper = brentq(lambda d: _score(worse, better, n, d) + beyond, seen + edge, 0.9, xtol=1e-14)
    lower = brentq(lambda d: _score(worse, better, n, d) - beyond, -0.9, seen - edge, xtol=1e-14)
    assert (low, high) == pytest.approx((lower, upper), abs=1e-10)


_COUNTS = st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 10_000)).map(
    lambda x: (x[0], x[1], x[0] + x[1] + x[2])
)


@settings(deadline=None)
@given(_COUNTS)
def test_the_score_interval_encloses_mirrors_and_moves(counts: tuple[int, int, int]) -> None:
    worse, better, n = counts
    low, high = tango(worse, better, n)
    assert -1 <= low <= (worse - better) / n <= high <= 1
    assert low < high
    assert tango(better, worse, n) == (-high, -low)
    assert tango(worse + 1, better, n)[1] > high
    assert tango(worse, better + 1, n)[1] < high + 1e-12
    assert tango(worse, better, n, 0.99)[1] > high


def test_nothing_changed_is_no_proof_of_nothing_lost() -> None:
    beyond = norm.ppf(0.95) ** 2
    assert tango(0, 0, 100) == pytest.approx(
        (-beyond / (100 + beyond), beyond / (100 + beyond)), abs=1e-12
    )
    assert tango(20, 0, 20)[1] == 1.0
    assert tango(0, 20, 20)[0] == -1.0


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_pairs_out_of_range_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="tango"):
        tango(*counts)


# Holm -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls where Bonferroni rejects every set of hypotheses that it belongs to."""
    tests = range(len(p_values))
    sets = [s for size in tests for s in combinations(tests, size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if test in s)
        for test in tests
    ]
    assert holm(p_values) == pytest.approx(expected, abs=1e-15)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []
