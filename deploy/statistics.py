"""Intervals and tests for verdicts of paired images. Exact, and standard library only."""

import math
from collections.abc import Sequence


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


def minimum_detectable_drop(
    n: int, discordant_share: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true drop that `mcnemar_exact` finds, at level alpha, with probability `power`.

    The number of changed images is Binomial(n, share) and the share is at least the drop; given
    that number the worse ones are binomial. No normal approximation: it flatters small n.

    Args:
        discordant_share: share of the images whose verdict differs, in [0, 1].

    Returns:
        A drop of accuracy, to 1e-4; 1.0 where n is too small to find any.

    Raises:
        ValueError: an argument lies outside its range.
    """
    if n < 1 or not 0 <= discordant_share <= 1 or not 0 < alpha < 1 or not 0 < power < 1:
        raise ValueError(
            f"minimum_detectable_drop: n {n}, share {discordant_share}, {alpha}, {power}"
        )
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        drop = (low + high) / 2
        if _power(n, drop, max(drop, discordant_share), alpha) < power:
            low = drop
        else:
            high = drop
    return high


def upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= n * p:  # beyond the mode the terms fall, so the sum can stop early
        return 1 - upper_tail(n - k + 1, n, 1 - p)
    if k > n or p == 0:
        return 0.0
    term = total = _probability(k, n, p)
    odds = p / (1 - p)
    while k < n and term > total * 1e-17:
        term *= (n - k) / (k + 1) * odds
        total += term
        k += 1
    return total


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


def _probability(k: int, n: int, p: float) -> float:
    """P(X = k) for X ~ Binomial(n, p) and p > 0."""
    if p == 1:
        return float(k == n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def _power(n: int, drop: float, share: float, alpha: float) -> float:
    """P(mcnemar_exact < alpha) when a `share` of n images changes and accuracy falls by `drop`."""
    worse = (share + drop) / (2 * share)
    spread = 5 * math.sqrt(n * share * (1 - share)) + 1  # leaves out less than 1e-5
    first, last = max(0, round(n * share - spread)), min(n, round(n * share + spread))
    total, needed = 0.0, first // 2
    for changed in range(first, last + 1):
        while upper_tail(needed, changed, 0.5) >= alpha:
            needed += 1
        total += _probability(changed, n, share) * upper_tail(needed, changed, worse)
    return total
