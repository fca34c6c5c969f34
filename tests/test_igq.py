"""Ideal gas quotas: one force presses all layers, and small ones give way least."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from advprune.allocate import allocate, igq

sizes = st.lists(st.integers(1, 4000), min_size=1, max_size=7)


def layers(sizes: list[int]) -> dict[str, Tensor]:
    return {f"layer{i}": torch.empty(size, device="meta") for i, size in enumerate(sizes)}


def force(kept: float, size: int) -> float:
    """F of kept = size / (1 + F size)."""
    return 1.0 / kept - 1.0 / size


@settings(deadline=None)
@given(sizes, st.integers(0, 999))
def test_one_force_explains_every_count_to_within_a_weight(sizes: list[int], share: int) -> None:
    total = sum(sizes) - sum(sizes) * share // 1000
    assume(total >= 3 * len(sizes))
    counts = list(igq(layers(sizes), total).values())
    assert sum(counts) == total
    # The forces that fit a layer's count to within one weight; the layers share one of them.
    lows = [force(min(count + 1, size), size) for count, size in zip(counts, sizes, strict=True)]
    highs = [
        force(count - 1, size) if count > 1 else float("inf")
        for count, size in zip(counts, sizes, strict=True)
    ]
    assert max(lows) <= min(highs) + 1e-12


@settings(deadline=None)
@given(sizes, st.integers(0, 999))
def test_larger_layers_keep_more_weights_and_a_smaller_share(sizes: list[int], share: int) -> None:
    total = sum(sizes) - sum(sizes) * share // 1000
    assume(total >= len(sizes))
    pairs = sorted(zip(sizes, igq(layers(sizes), total).values(), strict=True))
    for (small, few), (large, many) in pairwise(pairs):
        assert few <= many + 1
        assert Fraction(many, large) <= Fraction(few + 2, small)


def test_two_layers_by_hand() -> None:
    # F = 1/300: 600 / (1 + 2) = 200 and 150 / (1 + 1/2) = 100.
    assert igq(layers([600, 150]), 300) == {"layer0": 200, "layer1": 100}
    # F = 0.03: 100 / 4 = 25 and 300 / 10 = 30.
    assert igq(layers([100, 300]), 55) == {"layer0": 25, "layer1": 30}


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_at_high_sparsity_the_counts_draw_together(sparsity: float) -> None:
    kept = allocate("igq", layers([100_000, 1_000_000]), sparsity)
    ratio = kept["layer1"] / kept["layer0"]
    assert 1.0 < ratio < (2.2 if sparsity == 0.9 else 1.2)


def test_nothing_goes_where_nothing_is_asked_to() -> None:
    assert allocate("igq", layers([7, 1000, 30]), 0.0) == {
        "layer0": 7,
        "layer1": 1000,
        "layer2": 30,
    }
