"""Widths are rounded, and spend a budget without exceeding it or leaving a step of it unspent."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from advprune.errors import BadData
from advprune.widths import choices, fit


@pytest.mark.parametrize(
    ("width", "least", "multiple", "expected"),
    [
        (32, 8, 8, [8, 16, 24, 32]),
        (20, 8, 8, [8, 16, 20]),
        (6, 8, 8, [6]),
        (8, 8, 8, [8]),
        (48, 20, 8, [24, 32, 40, 48]),
        (5, 1, 1, [1, 2, 3, 4, 5]),
        (64, 1, 32, [32, 64]),
    ],
)
def test_a_width_is_a_multiple_or_the_whole(
    width: int, least: int, multiple: int, expected: list[int]
) -> None:
    assert choices(width, least, multiple) == expected


def total(widths: Mapping[str, int]) -> float:
    return float(sum(widths.values()))


def products(widths: Mapping[str, int]) -> float:
    """As convolutions in a row cost: each width times the next one."""
    line = list(widths.values())
    return float(sum(a * b for a, b in zip([3, *line], [*line, 10], strict=True)))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 96), st.floats(0, 1)), min_size=1, max_size=6),
    st.sampled_from([1, 4, 8, 16]),
    st.sampled_from([1, 8, 12]),
    st.floats(0.05, 1.0),
    st.sampled_from([total, products]),
)
def test_the_budget_is_met_to_within_one_step(
    groups: list[tuple[int, float]],
    multiple: int,
    least: int,
    share: float,
    cost: Callable[[Mapping[str, int]], float],
) -> None:
    whole = {str(i): width for i, (width, _) in enumerate(groups)}
    wanted = {str(i): width * density for i, (width, density) in enumerate(groups)}
    allowed = {name: choices(width, least, multiple) for name, width in whole.items()}
    budget = share * cost(whole)
    assume(cost({name: steps[0] for name, steps in allowed.items()}) <= budget)
    widths = fit(wanted, allowed, cost, budget)
    assert cost(widths) <= budget * (1 + 1e-9)
    for name, width in widths.items():
        assert width in allowed[name]
        wider = [step for step in allowed[name] if step > width]
        if wider:
            assert cost(widths | {name: wider[0]}) > budget


def test_what_is_wanted_and_fits_is_given() -> None:
    allowed = {name: choices(64, 8, 8) for name in "abc"}
    wanted = {"a": 8.0, "b": 40.0, "c": 16.0}
    assert fit(wanted, allowed, total, 64.0) == {"a": 8, "b": 40, "c": 16}
    # Three channels more are no step.
    assert fit(wanted, allowed, total, 67.0) == {"a": 8, "b": 40, "c": 16}


def test_whoever_has_too_many_gives_first() -> None:
    allowed = {name: choices(64, 8, 8) for name in "ab"}
    # Both round up, to 16 and 32; a is further above what it wanted.
    assert fit({"a": 12.0, "b": 31.0}, allowed, total, 43.0) == {"a": 8, "b": 32}


def test_a_budget_below_the_least_widths_names_the_group() -> None:
    allowed = {"wide": choices(64, 8, 8), "narrow.weight": choices(16, 8, 8)}
    message = (
        r"narrow\.weight would keep 1\.6 of 16 channels, 8 is its least width; lower --sparsity, "
        r"or --min-channels and --round-to"
    )
    with pytest.raises(BadData, match=message):
        fit({"wide": 6.4, "narrow.weight": 1.6}, allowed, total, 8.0)
