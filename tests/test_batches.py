"""An epoch shows every training image once, extra images beside them, each with its own chance."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import make_images, make_split

from advprune.batches import Batch, batches
from advprune.data import ImageSet, Split, Stream, as_float

OWN = 42
FIRST_EXTRA = 50_000


def images(extra: int | None = None, augment: str = "none") -> ImageSet:
    beside = None if extra is None else make_split(extra, FIRST_EXTRA)
    return replace(make_images(train=OWN), extra=beside, augment=augment)


def passed(
    images: ImageSet, seed: int = 0, epoch: int = 0, count: int = 4, *, augmented: bool = True
) -> list[Batch]:
    return list(batches(images, seed, epoch, count, augmented=augmented))


def found(batch: Batch, split: Split | Stream) -> list[int]:
    """Identities of the images of the batch, which are there as they are; no two are alike."""
    same = (batch.images[:, None] == as_float(split.images)).flatten(2).all(2)
    assert (same.sum(1) <= 1).all()
    return [int(split.indices[row.nonzero()]) for row in same if row.any()]


def drawn(batch: Batch) -> Tensor:
    return batch.random.uniform(3)


# The images of the data set


@pytest.mark.parametrize("count", [1, 4, 5, 42])
def test_an_epoch_shows_every_training_image_once_in_batches_of_nearly_equal_size(
    count: int,
) -> None:
    made = passed(images(), count=count)
    sizes = [len(batch.labels) for batch in made]
    assert len(made) == count
    assert max(sizes) - min(sizes) <= 1
    train = make_images(train=OWN).train
    seen = [identity for batch in made for identity in found(batch, train)]
    assert sorted(seen) == list(range(OWN))
    assert sum(sizes) == OWN


def test_labels_stay_with_their_images() -> None:
    train = make_images(train=OWN).train
    for batch in passed(images()):
        identities = found(batch, train)
        assert batch.labels.tolist() == [int(train.labels[i]) for i in identities]


def test_the_order_is_another_in_each_epoch_and_for_each_seed_and_repeats() -> None:
    train = make_images(train=OWN).train

    def order(seed: int, epoch: int, count: int = 1) -> list[int]:
        return [i for batch in passed(images(), seed, epoch, count) for i in found(batch, train)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*at)) for at in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4
    assert order(0, 0) != list(range(OWN))
    # However it is cut.
    assert order(0, 1, count=5) == order(0, 1)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize("extra", [None, OWN])
def test_what_an_image_draws_does_not_depend_on_its_batch(extra: int | None, augment: str) -> None:
    data = images(extra, augment)
    kept: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    for count in (1, 5):
        kept[count] = {}
        for batch in passed(data, count=count):
            twin = passed(images(extra), count=count)  # the same images, as they are
            whole = next(b for b in twin if torch.equal(b.labels, batch.labels))
            known = found(whole, data.train)
            if data.extra is not None:
                known += found(whole, data.extra)
            rows = zip(known, batch.images, drawn(batch), strict=True)
            kept[count] |= {identity: (image, draw) for identity, image, draw in rows}
    assert kept[1].keys() == kept[5].keys()
    assert len(kept[1]) == OWN + (extra or 0)
    for identity, (image, draw) in kept[1].items():
        assert torch.equal(image, kept[5][identity][0])
        assert torch.equal(draw, kept[5][identity][1])


def test_every_epoch_augments_and_attacks_an_image_in_another_way() -> None:
    data = images(augment="crop-flip")
    shown = []
    for epoch in (0, 1):
        plain = passed(data, epoch=epoch, count=1, augmented=False)[0]
        order = torch.tensor(found(plain, data.train)).argsort()
        batch = passed(data, epoch=epoch, count=1)[0]
        shown.append((batch.images[order], drawn(batch)[order]))
    (images0, draws0), (images1, draws1) = shown
    assert (images0 != images1).flatten(1).any(1).sum() > OWN / 2
    assert not (draws0 == draws1).any()


@pytest.mark.parametrize("extra", [None, 20])
def test_without_augmentation_the_images_are_as_they_are(extra: int | None) -> None:
    plain = passed(images(extra), augmented=True)
    for given, batch in zip(
        plain, passed(images(extra, "crop-flip"), augmented=False), strict=True
    ):
        assert torch.equal(given.images, batch.images)
        assert torch.equal(given.labels, batch.labels)
        assert torch.equal(drawn(given), drawn(batch))
    assert any(
        not torch.equal(given.images, batch.images)
        for given, batch in zip(plain, passed(images(extra, "crop-flip")), strict=True)
    )


def test_images_are_floats_between_zero_and_one() -> None:
    for batch in passed(images(OWN, "crop-flip")):
        assert batch.images.dtype == torch.float32
        assert 0.0 <= float(batch.images.min()) < float(batch.images.max()) <= 1.0
        assert batch.labels.dtype == torch.int64


# Extra images


@pytest.mark.parametrize("extra", [1, 10, OWN, 100])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_as_many_extra_images_as_own_are_in_every_batch_after_them(extra: int, count: int) -> None:
    data, alone = images(extra), images()
    assert data.extra is not None
    for batch, own in zip(passed(data, count=count), passed(alone, count=count), strict=True):
        size = len(own.labels)
        assert len(batch.labels) == len(batch.images) == 2 * size
        # The own images, their labels and draws are those of a set without extra images.
        assert torch.equal(batch.images[:size], own.images)
        assert torch.equal(batch.labels[:size], own.labels)
        assert torch.equal(drawn(batch)[:size], drawn(own))
        beside = found(batch, data.extra)
        assert len(beside) == size
        first = FIRST_EXTRA
        expected = [int(data.extra.labels[identity - first]) for identity in beside]
        assert batch.labels[size:].tolist() == expected


def beside(data: ImageSet, epoch: int, seed: int = 0, count: int = 4) -> list[int]:
    assert data.extra is not None
    made = passed(data, seed, epoch, count)
    return [identity for batch in made for identity in found(batch, data.extra)]


def test_each_epoch_shows_another_part_of_many_extra_images() -> None:
    data = images(3 * OWN)
    parts = [beside(data, epoch) for epoch in (0, 1, 2)]
    assert all(len(part) == len(set(part)) == OWN for part in parts)
    assert len({frozenset(part) for part in parts}) == 3
    assert beside(data, 1) == parts[1]
    assert set(beside(data, 0, seed=1)) != set(parts[0])
    # However the epoch is cut.
    assert beside(data, 2, count=5) == parts[2]
    # Nearly all of them are seen sooner or later: a third is missed with probability (2/3)^12.
    seen = {identity for epoch in range(12) for identity in beside(data, epoch)}
    assert len(seen) > 0.95 * 3 * OWN


@pytest.mark.parametrize("extra", [1, 5, 20, OWN - 1])
def test_few_extra_images_are_shown_again_but_none_much_more_often(extra: int) -> None:
    shown = beside(images(extra), epoch=0)
    times = [shown.count(FIRST_EXTRA + i) for i in range(extra)]
    assert sum(times) == OWN
    assert max(times) - min(times) <= 1
    # In rounds: nothing comes again before everything has come.
    for start in range(0, OWN - extra, extra):
        assert len(set(shown[start : start + extra])) == extra


def test_an_extra_image_is_not_taken_for_an_own_one() -> None:
    # Their identities differ, and so do their draws, even where the pictures are the same.
    train = make_images(train=OWN).train
    copies = Split(train.images, train.labels, train.indices + FIRST_EXTRA)
    data = replace(images(), extra=copies)
    (batch,) = passed(data, count=1)
    draws = drawn(batch)
    assert len(draws.unique(dim=0)) == 2 * OWN
