"""Where masks are nearly another: the last bit, the last weight, the edge of the sample."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advprune import selection
from advprune.errors import BadData
from advprune.masks import keep_best, keep_top, kept_count, load_masks
from advprune.selection import top_on_device, top_on_host


@pytest.mark.parametrize("size", [1, 1000, 1_000_000, 30_000_000])
def test_a_share_that_is_truly_below_all_leaves_a_weight(size: int) -> None:
    """Binary fractions are forgiven, and nothing that is larger than them."""
    forgiven = 1e-9 * max(1.0, size / 1e6)  # of a weight
    assert kept_count(size, 1 - 0.5 * forgiven / size) == 0
    assert kept_count(size, 1 - 1.5 * forgiven / size) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("around", [-3.0, -1e-30, 1e-30, 1.0, 1e30])
def test_scores_that_differ_in_their_last_bit_are_told_apart(dtype: type, around: float) -> None:
    values = [dtype(around)]
    for _ in range(40):
        values.append(np.nextafter(values[-1], dtype(np.inf)))
    shuffled = np.random.default_rng(0).permutation(np.array(values, dtype))
    for keep in (1, 7, 20, 41):
        largest = np.isin(shuffled, np.array(values[-keep:], dtype))
        assert np.array_equal(top_on_host(shuffled, keep), largest)
        assert np.array_equal(top_on_device(torch.from_numpy(shuffled), keep).numpy(), largest)


def test_scores_elsewhere_are_never_read_by_the_host() -> None:
    """On a device without any values, whoever asked for one would fail."""
    mask = keep_top(torch.empty(3, 4, 2, 2, device="meta"), 5)
    assert (mask.device.type, mask.dtype, mask.shape) == ("meta", torch.bool, (3, 4, 2, 2))


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=5, max_size=60), st.integers(1, 6), st.data())
def test_however_small_the_sample_the_mask_is_exact(
    values: list[int], sample: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(values)))
    scores = np.array(values, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_SAMPLE", sample)
        mask = top_on_host(scores, keep)
    assert np.flatnonzero(mask).tolist() == sorted(np.argsort(-scores, kind="stable")[:keep])


@pytest.mark.parametrize(("share", "few"), [(0.01, 0.01), (0.5, 0.04), (0.99, 0.01)])
def test_of_many_scores_few_are_partitioned(
    monkeypatch: pytest.MonkeyPatch, share: float, few: float
) -> None:
    partitioned: list[int] = []
    partition = np.partition

    def counting(values: np.ndarray, kth: int) -> np.ndarray:
        partitioned.append(len(values))
        return partition(values, kth)

    monkeypatch.setattr(np, "partition", counting)
    scores = np.random.default_rng(0).random(1_000_000, np.float32)
    top_on_host(scores, math.ceil(share * len(scores)))
    assert len(partitioned) == 1
    assert partitioned[0] <= few * len(scores)


def test_the_best_of_each_layer_are_kept_by_its_own_count() -> None:
    scores = {"a": torch.tensor([[1.0, 4.0], [3.0, 2.0]]), "b": torch.tensor([5.0, 9.0, 7.0])}
    masks = keep_best(scores, {"a": 2, "b": 1})
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [[False, True], [True, False]],
        "b": [False, True, False],
    }


def test_masks_of_a_device_come_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda mask: moved.append("cpu") or cpu(mask))
    keep_best({"a": torch.ones(3), "b": torch.ones(2)}, {"a": 1, "b": 1})
    assert moved == ["cpu", "cpu"]


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all"])
def test_a_file_of_masks_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "masks.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadData, match=re.escape(f"{path}: masks cannot be read (")) as refusal:
        load_masks(path)
    assert str(refusal.value).endswith("; run the stage again")
