"""Widths that engines like: multiples of 8 or 16, not too narrow, within a budget."""

from collections.abc import Callable, Mapping, Sequence

from advprune.errors import BadData

_SLACK = 1e-9  # of the budget: binary fractions


def choices(width: int, least: int, multiple: int) -> list[int]:
    """What `width` channels may become: multiples that are not below `least`, or all of them."""
    return sorted({w for w in range(multiple, width, multiple) if w >= least} | {width})


def within(cost: float, budget: float) -> bool:
    """Whether a cost stays within a budget, but for the last binary digits of both."""
    return cost <= budget * (1.0 + _SLACK)


def fit(
    wanted: Mapping[str, float],
    allowed: Mapping[str, Sequence[int]],
    cost: Callable[[Mapping[str, int]], float],
    budget: float,
) -> dict[str, int]:
    """The allowed widths nearest to what is wanted that together stay within the budget.

    No single group could take one more step without leaving the budget, so none of it is wasted.

    Args:
        wanted: channels of each group, not rounded.
        allowed: ascending widths of each group; the last one is all of its channels.
        cost: of all widths together, rising with each of them.
        budget: the largest cost, in the same units.

    Raises:
        BadData: the narrowest widths exceed the budget; names the group that is furthest off.
    """
    at = {name: _nearest(allowed[name], wanted[name]) for name in wanted}

    def widths(at: Mapping[str, int]) -> dict[str, int]:
        return {name: allowed[name][step] for name, step in at.items()}

    def excess(name: str, step: int) -> float:
        return (allowed[name][step] - wanted[name]) / allowed[name][-1]

    def fits(at: Mapping[str, int]) -> bool:
        return within(cost(widths(at)), budget)

    while not fits(at):
        down = [name for name in at if at[name] > 0]
        if not down:
            raise BadData(_too_narrow(wanted, widths(at), allowed))
        # Whoever is left with the most, relative to its width, gives first.
        name = max(down, key=lambda name: excess(name, at[name] - 1))
        at[name] -= 1
    up = {name for name in at if at[name] + 1 < len(allowed[name])}
    while up:
        name = min(up, key=lambda name: (excess(name, at[name] + 1), name))
        if fits(at | {name: at[name] + 1}):
            at[name] += 1
        else:
            up.discard(name)  # it will not fit later either: costs only rise from here
        up = {name for name in up if at[name] + 1 < len(allowed[name])}
    return widths(at)


def _nearest(allowed: Sequence[int], wanted: float) -> int:
    """The position of the nearest width; the wider one of two."""
    return min(range(len(allowed)), key=lambda step: (abs(allowed[step] - wanted), -step))


def _too_narrow(
    wanted: Mapping[str, float], least: Mapping[str, int], allowed: Mapping[str, Sequence[int]]
) -> str:
    name = max(wanted, key=lambda name: least[name] / max(wanted[name], 1e-9))
    return (
        f"channels: {name} would keep {wanted[name]:.3g} of {allowed[name][-1]} channels, "
        f"{least[name]} is its least width; lower --sparsity, or --min-channels and --round-to"
    )
