"""Splits are disjoint, complete, stratified, and decided by their seed alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advprune import data
from advprune.data.imageset import ImageSet, Split, check_labels, digest
from advprune.data.source import Fetched, Source
from advprune.data.splits import split, spread
from advprune.errors import BadData, Refused


def source(labels: list[int], train_count: int | None = None, classes: int | None = None) -> Source:
    """A data set of which only the labels matter."""
    count = classes or max(labels) + 1
    return Source(
        name="toy",
        classes=tuple(f"c{i}" for i in range(count)),
        labels=torch.tensor(labels),
        train_count=train_count,
        augment="none",
        fetch=lambda positions: Fetched(torch.zeros(len(positions), 1, 2, 2, dtype=torch.uint8)),
        read=lambda paths: torch.zeros(len(paths), 1, 2, 2, dtype=torch.uint8),
    )


def sizes(parts: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: len(positions) for name, positions in parts.items()}


@given(
    counts=st.lists(st.integers(15, 60), min_size=2, max_size=6),
    held_out=st.booleans(),
    seed=st.integers(0, 2**62),
)
def test_disjoint_complete_and_stratified(counts: list[int], held_out: bool, seed: int) -> None:
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    train_count = None
    if held_out:
        train_count = len(labels)
        labels = labels * 2
    toy = source(labels, train_count)
    parts = split(toy, seed, None, None)

    positions = torch.cat(list(parts.values())).tolist()
    assert sorted(positions) == list(range(len(labels)))
    if held_out:
        assert sorted(parts["test"].tolist()) == list(range(len(labels) // 2, len(labels)))
    for chosen in parts.values():
        share = len(chosen) / len(labels)
        for c, found in Counter(toy.labels[chosen].tolist()).items():
            # Three cuts, each off by at most one image of a class.
            assert abs(found - share * labels.count(c)) <= 3


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    seed=st.integers(0, 2**62),
    cut=st.floats(0, 1),
)
def test_every_beginning_is_stratified(counts: list[int], seed: int, cut: float) -> None:
    labels = torch.tensor([c for c, count in enumerate(counts) for _ in range(count)])
    order = spread(labels, torch.arange(len(labels)), seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    k = len(counts)
    assert sorted(labels[order[:k]].tolist()) == list(range(k))
    first = round(cut * len(labels))
    found = torch.bincount(labels[order[:first]], minlength=k)
    wanted = first * torch.tensor(counts) / len(labels)
    assert (found - wanted).abs().max() <= k - 1


def test_the_seed_decides() -> None:
    toy = source([0, 1, 2] * 100)
    first, again, other = (split(toy, seed, None, None) for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert set(first[name].tolist()) != set(other[name].tolist())


@pytest.mark.parametrize(
    ("train", "val", "calib"),
    [
        (1000, 100, 100),
        (1023, 102, 102),
        (1024, 102, 128),  # a tenth would be too few to calibrate with
        (2000, 200, 200),
        (6000, 600, 512),
        (60_000, 5000, 512),
    ],
)
def test_sizes(train: int, val: int, calib: int) -> None:
    toy = source([i % 5 for i in range(train)] + [0, 1, 2, 3, 4] * 20, train)
    found = sizes(split(toy, 0, None, None))
    assert found == {"train": train - val - calib, "val": val, "calib": calib, "test": 100}


def test_many_classes_are_all_calibrated() -> None:
    # ImageNet's case: 512 calibration images cannot hold 1,000 classes.
    toy = source(list(range(600)) * 12, 600 * 10)
    parts = split(toy, 0, None, None)
    assert sizes(parts) == {"train": 4800, "val": 600, "calib": 600, "test": 1200}
    assert sorted(toy.labels[parts["calib"]].tolist()) == list(range(600))


def test_limits_take_a_stratified_subset_first() -> None:
    toy = source([0] * 600 + [1] * 300 + [0] * 100 + [1] * 50, 900)
    parts = split(toy, 0, 300, 60)
    assert sizes(parts) == {"train": 240, "val": 30, "calib": 30, "test": 60}
    train = torch.cat([parts["train"], parts["val"], parts["calib"]])
    assert abs(int((toy.labels[train] == 1).sum()) - 100) <= 1
    assert abs(int((toy.labels[parts["test"]] == 1).sum()) - 20) <= 1
    # A limit above what there is takes all.
    assert sizes(split(toy, 0, 10**9, 10**9)) == sizes(split(toy, 0, None, None))


@pytest.mark.parametrize("limits", [(0, None), (None, 0), (-1, None)])
def test_limits_below_one_are_refused(limits: tuple[int | None, int | None]) -> None:
    with pytest.raises(Refused, match=r"--limit-(train|test): must be at least 1, got (0|-1)"):
        split(source([0, 1] * 50), 0, *limits)


@pytest.mark.parametrize(
    ("toy", "limits", "message"),
    [
        (
            source([0, 1] * 20 + [0, 0], 40),
            (None, None),
            r"the test split \(2 images\).* 'c1'; add",
        ),
        (source([0, 1] * 20 + [0, 1], 40, 3), (None, None), r"train split .* 'c2'; add"),
        (source([0, 1] * 20 + [0, 1], 40), (5, None), r"train split \(1 .*; raise --limit-train 5"),
        (source([0, 1] * 20 + [0, 1], 40), (None, 1), r"test split \(1 .*; raise --limit-test 1"),
        (source([0] * 40 + [1] * 2), (None, None), r"train split .* 'c1'; add images"),
    ],
)
def test_missing_class_is_named(toy: Source, limits: tuple, message: str) -> None:
    with pytest.raises(BadData, match=message) as refusal:
        split(toy, 0, *limits)
    assert refusal.value.exit_code == 65
    assert str(refusal.value).startswith("toy: ")


@pytest.mark.parametrize("value", [-100, -1, 3])
def test_labels_out_of_range_are_named(value: int) -> None:
    with pytest.raises(BadData, match=rf"toy: label {value} of image 2 lies outside \[0, 2\]"):
        check_labels(torch.tensor([0, 1, value, 2]), 3, "toy")
    check_labels(torch.tensor([0, 1, 2]), 3, "toy")


def tiny(pixels: int) -> ImageSet:
    images = torch.arange(2 * 4 * pixels, dtype=torch.uint8).reshape(2, 1, 4, pixels)
    part = Split(images, torch.tensor([0, 1]), torch.tensor([0, 1]))
    parts = {name: part for name in ("train", "val", "calib", "test")}
    return ImageSet("tiny", ("a", "b"), **parts, augment="none", digest="")


def test_digest_sees_everything() -> None:
    base = tiny(4)
    plain = digest(base.classes, "none", base.splits)
    part = base.train
    changed = [
        Split(part.images.flip(0), part.labels, part.indices),
        Split(part.images, part.labels.flip(0), part.indices),
        Split(part.images, part.labels, part.indices + 1),
        Split(part.images.transpose(2, 3), part.labels, part.indices),
    ]
    found = {
        plain,
        digest(("a", "c"), "none", base.splits),
        digest(base.classes, "crop", base.splits),
    }
    for other in changed:
        for name in base.splits:
            found.add(digest(base.classes, "none", base.splits | {name: other}))
    assert len(found) == 3 + 4 * 4
    assert digest(base.classes, "none", base.splits) == plain


def test_constant_channel_is_refused() -> None:
    blank = Split(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(3), torch.zeros(3))
    parts = {name: blank for name in ("train", "val", "calib", "test")}
    with pytest.raises(BadData, match="blank: channel 0 has the value 7 in every training image"):
        ImageSet("blank", ("a", "b"), **parts, augment="none", digest="").mean_std()


def test_to_keeps_everything() -> None:
    base = tiny(4)
    moved = base.to("cpu")
    assert moved.shape == base.shape == (1, 4, 4)
    assert torch.equal(moved.calib.images, base.calib.images)
    assert data.as_float(moved.train.images).max() <= 1
