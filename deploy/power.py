"""How much the gate's tests find with so many images, and how many images they need.

The number of changed images is binomial, and given that number the worse ones are: sums over both,
no normal approximation, which flatters small samples. Standard library only, like the gate.
"""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

from deploy.statistics import probability, tango_score, upper_tail

LEVEL = 0.05  # of a false alarm, and of a false pass
POWER = 0.8  # four of five cases
_BEYOND = NormalDist().inv_cdf(1 - LEVEL)
MOST = 200_000  # images; beyond, nobody waits for the exact number


def minimum_detectable_drop(n: int, share: float) -> float:
    """The smallest true drop that the exact McNemar test finds in four of five cases.

    Args:
        n: images, at least 1.
        share: of the images whose verdict differs, in [0, 1]; never below the drop.

    Returns:
        A drop of accuracy, to 1e-4; 1.0 where n is too small to find any.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check(n, share)
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        drop = (low + high) / 2
        if _finds(n, drop, share) < POWER:
            low = drop
        else:
            high = drop
    return high


def images_to_find(drop: float, share: float) -> int:
    """How many images it takes for `minimum_detectable_drop` to be this drop; `MOST` at most.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check(1, share)
    if not 0 < drop <= 1:
        raise ValueError(f"images_to_find: drop {drop}")
    return _fewest(lambda n: _finds(n, drop, share) >= POWER)


def chance_to_ship(n: int, share: float, margin: float, drop: float = 0.0) -> float:
    """How often Tango's bound lies below the margin.

    Args:
        n: images, at least 1.
        share: of the images whose verdict differs, in [0, 1].
        margin: a drop of accuracy, in (0, 1).
        drop: what was truly lost, from 0 to share.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check(n, share)
    if not 0 < margin < 1 or not 0 <= drop <= share:
        raise ValueError(f"chance_to_ship: margin {margin}, drop {drop} where {share} changes")
    worse = (share + drop) / (2 * share) if share else 0.5
    total, allowed = 0.0, 0
    for changed, chance in _changes(n, share):
        # Most that may be worse: with one more changed it moves by one at most.
        while allowed < changed and _may_ship(allowed + 1, changed, n, margin):
            allowed += 1
        while allowed >= 0 and (allowed > changed or not _may_ship(allowed, changed, n, margin)):
            allowed -= 1
        total += chance * (1 - upper_tail(allowed + 1, changed, worse))
    return total


def images_to_ship(share: float, margin: float, drop: float = 0.0) -> int:
    """How many images it takes for `chance_to_ship` to be four of five; `MOST` at most.

    Raises:
        ValueError: an argument lies outside its range.
    """
    return _fewest(lambda n: chance_to_ship(n, share, margin, drop) >= POWER)


def images_in_words(count: int) -> str:
    """A number of images that such a search has found; it gives up at `MOST`."""
    return f"{count} images" if count < MOST else f"{MOST} images or more"


def _check(n: int, share: float) -> None:
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"power: {n} images, of which a share of {share} changes")


def _fewest(enough: Callable[[int], bool]) -> int:
    """The number from which on `enough` holds, but for the saw teeth of whole images."""
    high = 1
    while not enough(high):
        if high == MOST:
            return MOST
        high = min(2 * high, MOST)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _changes(n: int, share: float) -> Iterator[tuple[int, float]]:
    """Numbers of changed images with their probabilities; leaves out less than 1e-5."""
    spread = 5 * math.sqrt(n * share * (1 - share)) + 1
    first, last = max(0, round(n * share - spread)), min(n, round(n * share + spread))
    for changed in range(first, last + 1):
        yield changed, probability(changed, n, share)


def _finds(n: int, drop: float, share: float) -> float:
    """P(mcnemar_exact < LEVEL) when a share of n images changes and accuracy falls by `drop`."""
    share = max(share, drop)
    worse = (share + drop) / (2 * share)
    total, needed = 0.0, 0
    for changed, chance in _changes(n, share):
        needed = max(needed, changed // 2)
        while upper_tail(needed, changed, 0.5) >= LEVEL:
            needed += 1
        total += chance * upper_tail(needed, changed, worse)
    return total


def _may_ship(worse: int, changed: int, n: int, margin: float) -> bool:
    return tango_score(worse, changed - worse, n, margin) < -_BEYOND
