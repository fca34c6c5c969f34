"""Augmentation does to each image what a plain loop would do, in whatever batch it comes."""

import numpy as np
import pytest
import torch

from advprune.data import augment
from advprune.errors import Refused
from advprune.repro import ImageRandom, derive


def stream(indices: torch.Tensor, epoch: int = 0) -> ImageRandom:
    return ImageRandom(derive(0, "augment", epoch), indices)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (1, 8, 8), (2, 7, 9)])
@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_against_a_plain_loop(shape: tuple[int, int, int], kind: str) -> None:
    count, (channels, height, width) = 50, shape
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(count) * 7
    found = augment(images, stream(indices), kind).numpy()

    margin = height // 8
    draws = stream(indices)
    offsets = draws.integers(2 * margin + 1, 2).numpy()
    flips = draws.integers(2, 1).numpy()[:, 0]
    for i, (top, left) in enumerate(offsets):
        padded = np.zeros((channels, height + 2 * margin, width + 2 * margin), dtype=np.float32)
        padded[:, margin : margin + height, margin : margin + width] = images[i].numpy()
        wanted = padded[:, top : top + height, left : left + width]
        if kind == "crop-flip" and flips[i]:
            wanted = wanted[:, :, ::-1]
        np.testing.assert_array_equal(found[i], wanted)


def test_an_image_is_treated_alike_in_any_batch() -> None:
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    indices = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:40]
    whole = augment(images, stream(indices), "crop-flip")
    some = torch.tensor([31, 2, 17])
    assert torch.equal(augment(images[some], stream(indices[some]), "crop-flip"), whole[some])
    one_by_one = [
        augment(images[i : i + 1], stream(indices[i : i + 1]), "crop-flip") for i in range(40)
    ]
    assert torch.equal(torch.cat(one_by_one), whole)
    assert not torch.equal(augment(images, stream(indices, epoch=1), "crop-flip"), whole)


def test_every_shift_and_both_sides_occur_evenly() -> None:
    # One bright pixel in the middle tells where it went; the halves differ to show a flip.
    count = 8100
    images = torch.zeros(count, 2, 32, 32)
    images[:, 0, 16, 16] = 1
    images[:, 1, :, :16] = 1
    moved = augment(images, stream(torch.arange(count)), "crop-flip")
    flipped = moved[:, 1, :, 5].sum(1) < 16
    assert 0.47 < flipped.float().mean() < 0.53
    spot = moved[:, 0].flatten(1).argmax(1)
    row = spot // 32
    column = torch.where(flipped, 31 - spot % 32, spot % 32)
    shifts = torch.bincount((row - 12) * 9 + (column - 12), minlength=81)
    assert len(shifts) == 81
    # 100 expected; 5 standard deviations.
    assert shifts.min() > 50
    assert shifts.max() < 150


def test_none_changes_nothing_and_unknown_is_refused() -> None:
    images = torch.rand(3, 1, 8, 8)
    rng = stream(torch.arange(3))
    assert augment(images, rng, "none") is images
    with pytest.raises(Refused, match="augment: 'flip' is not known; use one of none, crop"):
        augment(images, rng, "flip")


def test_input_is_left_alone() -> None:
    images = torch.rand(3, 1, 8, 8)
    before = images.clone()
    augment(images, stream(torch.arange(3)), "crop-flip")
    assert torch.equal(images, before)


@pytest.mark.gpu
def test_the_device_changes_nothing() -> None:
    images = torch.rand(64, 3, 32, 32)
    indices = torch.arange(64)
    there = augment(images.cuda(), stream(indices.cuda()), "crop-flip")
    assert torch.equal(there.cpu(), augment(images, stream(indices), "crop-flip"))
