"""A search comes from a dense start down to its target: gamma if long, the budget if short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprune.annealing import PAPER_STEPS, Annealed, Annealing

SHORTEST_LONG = 1_955  # a quarter of 20 epochs of 391 batches


def annealing(
    steps: int,
    target: float = 0.1,
    annealed: Annealed = "auto",
    start: float | None = None,
    ramp: float = 0.5,
) -> Annealing:
    return Annealing(steps, target, annealed, start, ramp)


def test_short_runs_anneal_the_budget_and_long_ones_gamma_unless_told() -> None:
    assert PAPER_STEPS == 20 * 391
    assert annealing(SHORTEST_LONG - 1).of_budget
    assert not annealing(SHORTEST_LONG).of_budget
    for steps in (10, 10**6):
        assert annealing(steps, annealed="budget").of_budget
        assert not annealing(steps, annealed="gamma").of_budget


def test_at_the_paper_s_length_the_numbers_are_the_paper_s() -> None:
    paper = annealing(PAPER_STEPS, target=0.01)
    assert paper.first_density == 0.1
    assert paper.gamma == 0.01
    assert paper.rate_lr == 1.0


def test_longer_runs_than_the_paper_s_are_no_gentler() -> None:
    long = annealing(10 * PAPER_STEPS, target=0.01)
    assert (long.first_density, long.gamma, long.rate_lr) == (0.1, 0.01, 1.0)


def test_the_shorter_the_run_the_denser_its_start_and_the_steeper_its_gamma() -> None:
    half, tenth = annealing(3_910, target=0.01), annealing(782, target=0.01)
    assert (half.gamma, half.rate_lr) == (pytest.approx(0.02), pytest.approx(0.5))
    assert (tenth.gamma, tenth.rate_lr) == (pytest.approx(0.1), pytest.approx(0.1))
    # With gamma, rates start where the paper's do; with a budget, at a tenth's tenth root.
    assert half.first_density == 0.1
    assert tenth.first_density == pytest.approx(0.1**0.1)
    assert annealing(782, target=0.01, annealed="gamma").first_density == 0.1
    assert annealing(3_910, target=0.01, annealed="budget").first_density == pytest.approx(0.1**0.5)


def test_no_run_starts_sparser_than_its_target() -> None:
    assert annealing(PAPER_STEPS, target=0.3).first_density == 0.3
    assert annealing(PAPER_STEPS, target=0.3, start=0.2).first_density == 0.3
    assert annealing(10, target=0.3, start=0.6).first_density == 0.6


def test_a_search_without_steps_has_finite_numbers() -> None:
    none = annealing(0)
    assert none.gamma == pytest.approx(0.01 * PAPER_STEPS)
    assert (none.first_density, none.rate_lr) == (1.0, 0.0)


def test_the_annealed_budget_falls_as_a_cubic_from_start_to_target() -> None:
    got = [annealing(40, start=0.6).budget(step / 40) for step in range(41)]
    assert got[0] == pytest.approx(0.6)
    assert got[10] == pytest.approx(0.1 + 0.5 / 8)  # Half of the ramp, which is half of the run.
    assert got[20:] == pytest.approx([0.1] * 21)
    assert got == sorted(got, reverse=True)


@given(st.floats(0.001, 0.9), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_budget_lies_between_target_and_start_and_never_rises(
    target: float, ramp: float, first: float, second: float
) -> None:
    run = annealing(100, target=target, start=0.95, ramp=ramp)
    earlier, later = run.budget(min(first, second)), run.budget(max(first, second))
    assert target <= later <= earlier <= 0.95 + 1e-12
    assert run.budget(1.0) == pytest.approx(target)
