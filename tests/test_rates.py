"""A layer's density as the sigmoid of a learned rate: the map, the budget, and the landing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from toy import generator, make_net

from advprune.cost import of_sizes
from advprune.masking import Scored, attach, prunable_weights
from advprune.masks import kept_count
from advprune.rates import Rated, follow, land, overrun, project, rate_of, rated, shift_to_budget
from advprune.repro import seeded

SIZES = {name: weight.numel() for name, weight in prunable_weights(make_net()).items()}
TOTAL = sum(SIZES.values())
COST = of_sizes(SIZES)
START = dict(zip(SIZES, (0.7, 0.15, 0.3, 0.9), strict=True))


def attached(densities: dict[str, float], floor: float) -> dict[str, Rated]:
    net = make_net()
    attach(net, lambda name, weight: Rated(weight, 1, densities[name], floor))
    return rated(net)


def spent(layers: dict[str, Rated]) -> float:
    """Weights that the densities stand for, in float64."""
    return sum(
        SIZES[name] * ((1 - m.floor) * sigmoid(float(m.rate.detach())) + m.floor)
        for name, m in layers.items()
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@settings(deadline=None)
@given(st.floats(1e-6, 0.5), st.floats(0.001, 0.999))
def test_a_rate_stands_for_its_density(floor: float, share: float) -> None:
    density = floor + share * (0.99 - floor)
    rate = rate_of(density, floor)
    assert (1 - floor) * sigmoid(rate) + floor == pytest.approx(density, rel=1e-9)
    masking = Rated(torch.ones(2, 3), 1, density, floor)
    assert float(masking.density().detach()) == pytest.approx(density, rel=1e-5)


def test_densities_lie_between_the_floor_and_one_and_rise_with_the_rate() -> None:
    masking = Rated(torch.ones(2, 3), 1, 0.3, 0.02)
    got = []
    for rate in np.linspace(-200, 200, 401):
        masking.rate.data.fill_(rate)
        got.append(float(masking.density().detach()))
    assert got[0] == pytest.approx(0.02)
    assert got[-1] == pytest.approx(1.0)
    assert got == sorted(got)


@pytest.mark.parametrize("density", [0.05, 0.0499, 0.0, -1.0, math.nan])
def test_no_rate_stands_for_a_density_at_or_below_the_floor(density: float) -> None:
    with pytest.raises(ValueError, match=r"must exceed the floor 0\.05"):
        rate_of(density, 0.05)


def test_a_dense_layer_starts_with_a_rate_that_can_still_learn() -> None:
    assert math.isfinite(rate_of(1.0, 0.05))
    assert rate_of(1.0, 0.05) == rate_of(0.99, 0.05)


def test_the_gradient_of_a_rate_is_the_sum_of_its_layer_s_mask_gradients() -> None:
    with seeded(0):
        layer, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(4, 3, 8, 8)
    weight = layer.weight.detach().clone()
    masking = Rated(weight, 40, density=0.3, floor=0.02)
    masking.scores.data.normal_(generator=torch.Generator().manual_seed(1))
    masking.refresh()
    layer.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", masking)
    layer(x).square().sum().backward()
    assert masking.rate.grad is not None and masking.scores.grad is not None

    effective = (weight * masking.mask).requires_grad_()
    loss = F.conv2d(x, effective, padding=1).square().sum()
    (gradient,) = torch.autograd.grad(loss, effective)
    through = sigmoid(rate_of(0.3, 0.02))
    per_density = float((weight * gradient).double().sum())
    expected = per_density * (1 - 0.02) * through * (1 - through)
    assert float(masking.rate.grad) == pytest.approx(expected, rel=1e-4)
    # The scores see what they would see without a rate.
    expected_scores = weight * gradient * masking.scores.detach().sign()
    assert torch.allclose(masking.scores.grad, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.0999, 0.1001, 0.2, 0.5, 0.95])
def test_l_hw_is_the_share_above_the_target_and_flat_below(density: float) -> None:
    layers = attached(dict.fromkeys(SIZES, density), floor=0.01)
    over = overrun(layers, 0.1, COST)
    excess = spent(layers) / (0.1 * TOTAL) - 1
    assert (excess > 0) == (density > 0.1)
    assert float(over.detach()) == pytest.approx(max(0.0, excess), abs=1e-5)
    over.backward()
    for name, masking in layers.items():
        assert masking.rate.grad is not None
        through = sigmoid(float(masking.rate.detach()))
        slope = SIZES[name] * (1 - masking.floor) * through * (1 - through) / (0.1 * TOTAL)
        assert float(masking.rate.grad) == pytest.approx(slope if excess > 0 else 0.0, rel=1e-4)
        assert masking.scores.grad is None


def test_l_hw_weighs_layers_by_their_size() -> None:
    # Twice the density in conv2, which has three of four weights, is more than in conv1.
    def over(name: str) -> float:
        densities = dict.fromkeys(SIZES, 0.1) | {name: 0.2}
        return float(overrun(attached(densities, floor=0.01), 0.1, COST).detach())

    for name, size in SIZES.items():
        assert over(name) == pytest.approx(size / TOTAL, rel=1e-3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-8, 8), st.integers(1, 10**6)), min_size=1, max_size=8),
    st.floats(1e-5, 0.3),
    st.floats(0.01, 0.99),
)
def test_one_shift_of_all_rates_lands_on_the_budget(
    layers: list[tuple[float, int]], floor: float, share: float
) -> None:
    rates = torch.tensor([rate for rate, _ in layers], dtype=torch.float64)
    sizes = {str(i): size for i, (_, size) in enumerate(layers)}
    budget = floor + share * (1 - floor)
    shift = shift_to_budget(rates, floor, of_sizes(sizes), budget)
    each = [
        size * ((1 - floor) * sigmoid(float(rate) + shift) + floor)
        for rate, size in zip(rates, sizes.values(), strict=True)
    ]
    assert sum(each) == pytest.approx(budget * sum(sizes.values()), rel=1e-9)


@pytest.mark.parametrize("budget", [0.05, 1.1])
def test_no_shift_reaches_below_the_floor_or_above_all_weights(budget: float) -> None:
    with pytest.raises(ValueError, match="out of the rates' reach"):
        shift_to_budget(torch.zeros(1), 0.1, of_sizes({"a": 10}), budget)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.6])
def test_projecting_gives_the_layers_together_this_density(density: float) -> None:
    layers = attached(START, floor=0.01)
    before = {name: float(masking.rate.detach()) for name, masking in layers.items()}
    project(layers, density, COST)
    assert spent(layers) == pytest.approx(density * TOTAL, rel=1e-5)
    moved = [float(layers[name].rate.detach()) - before[name] for name in layers]
    assert moved == pytest.approx([moved[0]] * len(moved), abs=1e-5)


def test_projecting_only_down_leaves_rates_below_the_density_alone() -> None:
    layers = attached(START, floor=0.01)
    before = {name: float(masking.rate.detach()) for name, masking in layers.items()}
    project(layers, 0.6, COST, only_down=True)
    assert {name: float(masking.rate.detach()) for name, masking in layers.items()} == before
    project(layers, 0.05, COST, only_down=True)
    assert spent(layers) == pytest.approx(0.05 * TOTAL, rel=1e-5)


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.95])
def test_landing_selects_exactly_the_asked_count_within_one_weight_of_the_densities(
    sparsity: float,
) -> None:
    layers = attached(START, floor=0.01)
    land(layers, sparsity)
    kept = {name: int(masking.mask.sum()) for name, masking in layers.items()}
    assert sum(kept.values()) == kept_count(TOTAL, sparsity)
    for name, masking in layers.items():
        wanted = float(masking.density().detach()) * SIZES[name]
        assert abs(kept[name] - max(1.0, wanted)) <= 1 + 1e-3
        best = masking.scores.detach().abs().flatten().topk(kept[name]).values.min()
        assert torch.equal(masking.mask, masking.scores.detach().abs() >= best)


def test_a_mask_follows_its_density_and_never_empties() -> None:
    masking = Rated(torch.rand(5, 20, generator=generator(0)), 100, density=0.5, floor=1e-4)
    for density, kept in [(0.305, 31), (0.3, 30), (0.9, 90), (0.001, 1)]:
        # A hair below, so that float32 does not round up to one weight more.
        masking.rate.data.fill_(rate_of(density * (1 - 1e-6), masking.floor))
        follow({"layer": masking})
        assert int(masking.mask.sum()) == kept


def test_only_layers_with_rates_are_found() -> None:
    net = make_net()
    attach(net, lambda name, w: Rated(w, 5, 0.5, 0.01) if "conv" in name else Scored(w, 5))
    assert [name.split(".")[1] for name in rated(net)] == ["conv1", "conv2", "conv3"]
