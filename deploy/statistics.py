"""Intervals and tests for verdicts of paired images. Exact, and standard library only."""

import math
from collections.abc import Sequence
from statistics import NormalDist


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval that covers a share in at least `confidence` of all samples.

    Clopper and Pearson 1934: each bound is the share at which the tail beyond `successes` holds
    half of what is left over; 0 and 1 where there is no tail.

    Args:
        successes: 0 to n.
        n: images, at least 1.

    Returns:
        (low, high), shares in [0, 1].

    Raises:
        ValueError: an argument lies outside its range.
    """
    if not 0 <= successes <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"clopper_pearson: {successes} of {n} at confidence {confidence}")
    tail = (1 - confidence) / 2
    return _lower_bound(successes, n, tail), 1 - _lower_bound(n - successes, n, tail)


def share(flags: Sequence[bool]) -> dict[str, float]:
    """The share of true flags, "value", with its 95 % Clopper-Pearson interval, "low" and "high".

    Raises:
        ValueError: there are no flags.
    """
    low, high = clopper_pearson(sum(flags), len(flags))
    return {"value": sum(flags) / len(flags), "low": low, "high": high}


def mcnemar_exact(worse: int, better: int) -> float:
    """One-sided p of "got worse" from the images whose verdict changed (McNemar 1947, exact).

    P(X >= worse) for X ~ Binomial(worse + better, 1/2), rounded once, at the end.

    Raises:
        ValueError: a count is negative.
    """
    if min(worse, better) < 0:
        raise ValueError(f"mcnemar_exact: counts must not be negative, got {worse} and {better}")
    n, term, total = worse + better, 1, 1
    for better_by_chance in range(better):
        term = term * (n - better_by_chance) // (better_by_chance + 1)
        total += term
    return total / (1 << n)


def tango(worse: int, better: int, n: int, confidence: float = 0.90) -> tuple[float, float]:
    """Score interval of the drop of accuracy between two engines on the same images.

    Tango 1998, Statistics in Medicine 17: the drops at which `tango_score` is not beyond its normal
    quantiles. Either end of the two-sided 90 % interval is a one-sided 95 % bound.

    Args:
        worse: images that only the former engine gets right.
        better: images that only this engine gets right.
        n: all images, at least 1.

    Returns:
        (low, high), drops in [-1, 1]; they enclose (worse - better) / n.

    Raises:
        ValueError: an argument lies outside its range.
    """
    if min(worse, better) < 0 or n < max(1, worse + better) or not 0 < confidence < 1:
        raise ValueError(f"tango: {worse} worse, {better} better of {n} at {confidence}")
    beyond = NormalDist().inv_cdf((1 + confidence) / 2)
    return -_tango_upper(better, worse, n, beyond), _tango_upper(worse, better, n, beyond)


def tango_score(worse: int, better: int, n: int, drop: float) -> float:
    """How far the drop that was seen lies above a supposed one, in standard errors.

    Tango 1998: the score statistic of the difference of two paired proportions; the share of
    better images is the likeliest one under the supposed drop, the root of a quadratic.

    Args:
        drop: supposed, -1 < drop < 1 and not 0 where no image changed.
    """
    b = (2 * n - worse + better) * drop - worse - better
    c = -better * drop * (1 - drop)
    root = math.sqrt(max(0.0, b * b - 8 * n * c))
    # Two forms of one root: each loses digits where the other keeps them.
    likeliest = (root - b) / (4 * n) if b <= 0 else -2 * c / (b + root)
    variance = n * (2 * likeliest + drop * (1 - drop))
    gap = worse - better - n * drop
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p as it counts among several tests: below a level, it holds for all of them together.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= n * p:  # beyond the mode the terms fall, so the sum can stop early
        return 1 - upper_tail(n - k + 1, n, 1 - p)
    if k > n or p == 0:
        return 0.0
    term = total = probability(k, n, p)
    odds = p / (1 - p)
    while k < n and term > total * 1e-17:
        term *= (n - k) / (k + 1) * odds
        total += term
        k += 1
    return total


def probability(k: int, n: int, p: float) -> float:
    """P(X = k) for X ~ Binomial(n, p)."""
    if p in (0, 1):
        return float(k == n * p)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def _lower_bound(successes: int, n: int, tail: float) -> float:
    """The share p at which P(X >= successes) = tail, X ~ Binomial(n, p)."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / n
    while low < (middle := (low + high) / 2) < high:
        if upper_tail(successes, n, middle) < tail:
            low = middle
        else:
            high = middle
    return high


def _tango_upper(worse: int, better: int, n: int, beyond: float) -> float:
    """The drop at which the score is -beyond; it falls as the supposed drop rises."""
    low, high = (worse - better) / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        if tango_score(worse, better, n, middle) > -beyond:
            low = middle
        else:
            high = middle
    return high
