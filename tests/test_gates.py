"""Gates are distributed as the paper says, to the last clip, and settle where it says."""

import math
from typing import Any

import pytest
import torch
from oracles import anp_vs as oracle
from torch import Tensor

from advprune.gates import PRIOR, THRESHOLD, Gates, divergence, expectation, kumaraswamy, log_odds
from advprune.repro import seeded

SHAPES = [(1e-4, 1.0), (0.05, 0.3), (0.5, 1.0), (1.0, 1.0), (2.0, 3.0), (2.127, 0.2), (8.0, 20.0)]
every_shape = pytest.mark.parametrize(("a", "b"), SHAPES)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_gates(count: int, a_uc: float = 2.0, b_uc: float | None = None) -> Gates:
    made = Gates({"one": count}, a_uc)
    if b_uc is not None:
        made.b_uc.data.fill_(b_uc)
    made.refresh()
    return made


def a_uc_of(a: float) -> float:
    return math.log(math.expm1(a))


# The posterior


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 1, 0.5), (2, 3, 16 / 35), (7, 1, 7 / 8)])
def test_the_expectation_of_known_gates(a: float, b: float, expected: float) -> None:
    assert float(expectation(double(a), double(b))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("a", "b", "expected"), [(1e-4, 1, 0.0), (1, 1, 8.21044), (2, 3, 8.50219)])
def test_the_divergence_of_known_gates(a: float, b: float, expected: float) -> None:
    assert float(divergence(double(a), double(b))) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("a_uc", "mean", "nats"), [(2.0, 0.680200, 8.96508), (-1.0, 0.238541, 7.04995)]
)
def test_gates_as_the_paper_starts_them(a_uc: float, mean: float, nats: float) -> None:
    gates = make_gates(5, a_uc)
    assert gates.expected().tolist() == pytest.approx([mean] * 5, abs=1e-6)
    assert gates.divergence().item() == pytest.approx(5 * nats, abs=5e-5)


@every_shape
def test_expectation_and_divergence_are_the_integrals(a: float, b: float) -> None:
    assert float(expectation(double(a), double(b))) == pytest.approx(
        oracle.expectation(a, b), rel=1e-5, abs=1e-9
    )
    assert float(divergence(double(a), double(b))) == pytest.approx(
        oracle.divergence(a, b, PRIOR), rel=1e-5, abs=1e-5
    )


@every_shape
def test_the_log_odds_are_those_of_the_sample(a: float, b: float) -> None:
    u = double(0.01, 0.2, 0.5, 0.9)
    pi = (1 - u ** (1 / b)) ** (1 / a)
    usable = (pi > 1e-300) & (pi < 1 - 1e-6)
    got = log_odds(double(a), double(b), u)
    torch.testing.assert_close(got[usable], torch.logit(pi)[usable], rtol=1e-7, atol=1e-7)
    assert usable.any() or a < 1e-3


@every_shape
def test_gradients_are_those_of_finite_differences(a: float, b: float) -> None:
    inputs = (double(a).requires_grad_(), double(b).requires_grad_())
    step: dict[str, Any] = {"eps": 1e-6 * a, "atol": 1e-4 / a, "rtol": 1e-4}
    assert torch.autograd.gradcheck(expectation, inputs, **step)
    assert torch.autograd.gradcheck(divergence, inputs, **step)
    assert torch.autograd.gradcheck(lambda a, b: log_odds(a, b, double(0.3)), inputs, **step)


def test_unconstrained_parameters_are_clipped() -> None:
    a, b = kumaraswamy(double(-20.0, -10.0, 0.0, 60.0), double(-20.0, -10.0, 50.0, 60.0))
    assert a.tolist() == pytest.approx([4.5398899e-5, 4.5398899e-5, math.log(2), 60.0])
    assert b.tolist() == pytest.approx([4.5398899e-5, 4.5398899e-5, 50.0, 50.0])


def test_float32_parameters_are_read_in_float64() -> None:
    gates = make_gates(1, a_uc=-9.5, b_uc=3.0)
    a, b = math.log1p(math.exp(-9.5)), math.log1p(math.exp(3.0))
    exact = math.exp(
        math.log(b) + math.lgamma(1 + 1 / a) + math.lgamma(b) - math.lgamma(1 + 1 / a + b)
    )
    assert gates.divergence().dtype == torch.float64
    assert gates.expected().item() == pytest.approx(exact, rel=1e-4)


# Noise


def test_the_relaxed_gate_is_on_about_as_often_as_expected() -> None:
    gates, count = make_gates(40_000), 40_000
    with seeded(1), gates.drawn(1):
        z = gates()[0].detach()
    theirs = oracle.samples(2.126928, 1.0, count, 1, seed=2)[0]
    # Six standard deviations of the mean of so many numbers in [0, 1].
    assert float(z.mean()) == pytest.approx(0.6802, abs=6 * 0.5 / count**0.5)
    assert float(z.mean()) == pytest.approx(float(theirs.mean()), abs=9 * 0.5 / count**0.5)
    for level in (0.01, 0.5, 0.99):
        share = float((z < level).float().mean())
        assert share == pytest.approx(float((theirs < level).mean()), abs=9 * 0.5 / count**0.5)


def test_pi_belongs_to_the_channel_and_the_switch_to_the_image() -> None:
    gates = make_gates(400)
    with seeded(3), gates.drawn(300):
        z = gates().detach()
    assert z.shape == (300, 400)
    theirs = oracle.samples(2.126928, 1.0, 400, 300, seed=4)
    # How often a channel is on differs between channels, far more than 300 images would allow.
    assert float(z.mean(dim=0).std()) == pytest.approx(theirs.mean(axis=0).std(), rel=0.15)
    assert float(z.mean(dim=0).std()) > 0.15
    # And a channel is on for some images, off for others.
    assert float(z.std(dim=0).mean()) == pytest.approx(theirs.std(axis=0).mean(), rel=0.1)


def test_noise_is_of_the_global_generator_and_new_in_every_draw() -> None:
    gates = make_gates(6)

    def draw() -> Tensor:
        with gates.drawn(4):
            return gates().detach()

    with seeded(5):
        first, second = draw(), draw()
    with seeded(5):
        again = draw()
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).all()


@pytest.mark.parametrize("a_uc", [-30.0, -10.0, 0.0, 60.0])
@pytest.mark.parametrize("b_uc", [-30.0, -10.0, 0.0, 60.0])
@pytest.mark.parametrize("number", [0.0, 1e-30, 0.5, 1.0])
def test_no_number_that_may_be_drawn_is_too_extreme(
    a_uc: float, b_uc: float, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = make_gates(3, a_uc, b_uc)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.full(shape, number, **kind))
    with gates.drawn(2):
        z = gates()
    assert ((z >= 0) & (z <= 1)).all()
    (z.sum() + gates.expected().sum() + gates.divergence()).backward()
    for parameter in gates.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


# Settled gates


def test_outside_of_a_draw_and_in_eval_mode_gates_are_not_random() -> None:
    gates = make_gates(7)
    expected = gates.expected().detach()[None]
    assert torch.equal(gates(), expected)
    with gates.drawn(5):
        assert gates().shape == (5, 7)
        assert gates() is gates()
        assert torch.equal(gates.eval()(), expected)
        gates.train()
    assert torch.equal(gates(), expected)
    with pytest.raises(RuntimeError, match="inside"), gates.drawn(5):
        raise RuntimeError("inside")
    assert torch.equal(gates(), expected)


def test_a_gate_below_the_threshold_is_shut_and_an_open_one_scales() -> None:
    # With b = 1, E[pi] = a / (a + 1).
    odds = THRESHOLD / (1 - THRESHOLD)
    gates = make_gates(4)
    gates.a_uc.data.copy_(torch.tensor([a_uc_of(odds * f) for f in (0.9, 0.999, 1.001, 500.0)]))
    gates.refresh()
    settled = gates()[0]
    assert settled[:2].tolist() == [0.0, 0.0]
    assert settled[2:].tolist() == pytest.approx([1.001e-3, 0.33356], rel=1e-3)
    assert torch.equal(settled[2:], gates.expected()[2:])


def test_gates_settle_anew_only_when_told() -> None:
    gates = make_gates(2)
    before = gates().clone()
    gates.a_uc.data.fill_(-1.0)
    assert torch.equal(gates(), before)
    gates.refresh()
    assert gates()[0].tolist() == pytest.approx([0.238541] * 2, abs=1e-6)
    # What a checkpoint holds is what the gates were, settled ones included.
    other = make_gates(2)
    other.load_state_dict(gates.state_dict())
    assert torch.equal(other(), gates())


def test_values_are_split_by_group() -> None:
    gates = Gates({"b": 2, "a": 3}, 0.0)
    parts = gates.split(torch.arange(5))
    assert {name: part.tolist() for name, part in parts.items()} == {"b": [0, 1], "a": [2, 3, 4]}
