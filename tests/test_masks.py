"""Masks keep exactly the weights, and exactly as many, as they must."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from advprune.errors import BadData
from advprune.masks import (
    counts,
    keep_top,
    kept_count,
    load_masks,
    removed_count,
    save_masks,
    sparsity_of,
)
from advprune.selection import top_on_device, top_on_host

Select = Callable[[Tensor, int], Tensor]
decimals = st.decimals(0, "0.999999", places=6) | st.decimals(0, "0.99", places=2)


def on_host(scores: Tensor, keep: int) -> Tensor:
    return torch.from_numpy(top_on_host(scores.flatten().numpy(), keep))


def on_device(scores: Tensor, keep: int) -> Tensor:
    return top_on_device(scores.flatten(), keep)


def by_sorting(scores: Tensor, keep: int) -> np.ndarray:
    """A full stable sort in descending order: among equal scores the lowest index comes first."""
    flat = scores.detach().numpy().ravel()
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    return mask.reshape(tuple(scores.shape))


@st.composite
def tied_scores(draw: st.DrawFn) -> Tensor:
    """Few distinct values, both zeros among them, in one to three dimensions."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    values = st.sampled_from([-1.5, -0.0, 0.0, 1e-30, 1.0, 2.0])
    size = math.prod(shape)
    return torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)


@settings(deadline=None)
@given(tied_scores(), st.data())
def test_the_kept_weights_are_those_of_a_stable_sort(scores: Tensor, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, scores.numel()))
    mask = keep_top(scores, keep)
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), by_sorting(scores, keep))
    if keep:
        assert torch.equal(on_device(scores, keep), mask.flatten())


@pytest.mark.parametrize("keep", [1, 777, 99_999, 100_000])
@pytest.mark.parametrize("levels", [3, 16, 1 << 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("select", [on_host, on_device])
def test_large_layers_too(keep: int, levels: int, dtype: torch.dtype, select: Select) -> None:
    drawn = torch.randint(levels, (100_000,), generator=torch.Generator().manual_seed(keep))
    scores = (drawn - levels // 3).to(dtype).reshape(100, 10, 10, 10)
    assert np.array_equal(select(scores, keep).numpy(), by_sorting(scores, keep).ravel())


@pytest.mark.parametrize("keep", [1, 40_000, 150_000])
def test_a_sample_that_misleads_costs_time_alone(keep: int) -> None:
    """Every value that the sample takes is large, and no other is."""
    scores = torch.rand(200_000, generator=torch.Generator().manual_seed(keep))
    scores[:: len(scores) // 16_384] += 1.0
    assert np.array_equal(on_host(scores, keep).numpy(), by_sorting(scores, keep))


def test_memory_layout_changes_nothing_and_scores_stay_untouched() -> None:
    scores = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    last = scores.to(memory_format=torch.channels_last)
    before = last.clone()
    assert torch.equal(keep_top(last, 50), keep_top(scores, 50))
    assert torch.equal(keep_top(scores.transpose(0, 1), 50).transpose(0, 1), keep_top(scores, 50))
    assert torch.equal(last, before)


def test_scores_that_learn_are_read_without_a_graph() -> None:
    mask = keep_top(torch.tensor([3.0, 1.0, 2.0], requires_grad=True), 2)
    assert mask.tolist() == [True, False, True]
    assert not mask.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_scores_that_are_not_finite_are_refused(value: float, keep: int) -> None:
    with pytest.raises(BadData, match=r"not finite.*lower the learning rate"):
        keep_top(torch.tensor([1.0, value, 2.0]), keep)


@pytest.mark.parametrize("keep", [-1, 4])
def test_more_weights_than_there_are_cannot_be_kept(keep: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must lie in [0, 3], got {keep}")):
        keep_top(torch.ones(3), keep)


@settings(deadline=None)
@given(st.integers(1, 30_000_000), decimals)
def test_counts_are_those_of_exact_arithmetic(size: int, sparsity: Decimal) -> None:
    removed = math.floor(Fraction(sparsity) * size)
    assert removed_count(size, float(sparsity)) == removed
    assert kept_count(size, float(sparsity)) == size - removed


@settings(deadline=None)
@given(st.integers(1, 30_000_000), decimals)
def test_a_density_turned_into_a_sparsity_counts_as_exactly(size: int, density: Decimal) -> None:
    removed = math.floor((1 - Fraction(density)) * size)
    assert kept_count(size, 1.0 - float(density)) == size - removed


def test_the_binary_fractions_that_a_plain_floor_gets_wrong() -> None:
    assert math.floor((1 - 0.9) * 10) == 0  # what goes wrong
    assert removed_count(10, 1 - 0.9) == 1
    assert removed_count(1000, 1 - 0.999) == 1
    assert removed_count(100, 0.29) == 29
    assert kept_count(11_000_000, 0.999999) == 11
    assert kept_count(11_000_001, 0.999999) == 12


def test_counts_and_sparsity_go_over_all_layers_together() -> None:
    masks = {"a": torch.tensor([True, False, False, False]), "b": torch.ones(2, 6).bool()}
    assert counts(masks) == {"a": (1, 4), "b": (12, 12)}
    assert sparsity_of(masks) == pytest.approx(3 / 16)


def test_files_give_back_what_was_saved(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    masks = {
        "network.conv.weight": torch.rand(8, 3, 3, 3, generator=draw) < 0.1,
        "transposed": (torch.rand(5, 7, generator=draw) < 0.5).T,
        "channels_last": torch.ones(2, 3, 4, 5, dtype=torch.bool).to(
            memory_format=torch.channels_last
        ),
        "one": torch.tensor([True]),
    }
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys()
    for name, mask in masks.items():
        assert loaded[name].dtype == torch.bool
        assert torch.equal(loaded[name], mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_a_file_without_bools_is_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "masks.safetensors"
    save_file({"fine": torch.ones(2).bool(), "conv.weight": torch.ones(2, dtype=dtype)}, path)
    with pytest.raises(BadData, match=re.escape(f"{path}: mask 'conv.weight'") + ".*expected bool"):
        load_masks(path)
