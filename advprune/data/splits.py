"""Which image goes where: disjoint, stratified by class, decided by a seed of their own."""

import torch
from torch import Tensor

from advprune.data.imageset import check_classes
from advprune.data.source import Labelled
from advprune.errors import Refused
from advprune.repro import ImageRandom, derive

# With fewer calibration images, the activation ranges of an 8-bit network are luck.
_CALIBRATION_LEAST = 128


def spread(labels: Tensor, positions: Tensor, seed: int) -> Tensor:
    """`positions` in a random order of which every beginning is stratified.

    Image j of the n in its class comes at the point j/n of the order. So each beginning holds every
    class in proportion, to within one image, and the first K images are one of each class.

    Args:
        labels: int64, of the whole source.
        positions: int64 (N,), the images to order.
    """
    draws = ImageRandom(seed, positions).bits()
    shuffled = positions[draws.argsort(stable=True)]
    of_class = labels[shuffled]
    grouped = of_class.argsort(stable=True)
    sizes = torch.bincount(of_class)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(grouped)) - starts[of_class[grouped]]
    point = rank.to(torch.float64) / sizes[of_class]
    return shuffled[point.argsort(stable=True)]


def split(
    source: Labelled, seed: int, limit_train: int | None, limit_test: int | None
) -> dict[str, Tensor]:
    """The positions of each split in the source, int64.

    A source without a test set gives 20 % of its images to one. The limits take a subset; then
    validation and calibration come out of what is left to train on: a tenth each, at most 5,000 and
    512, at least one image of each class, and at least 128 calibration images of a train set of
    1,024 or more.

    Raises:
        Refused: a limit is below 1.
        BadData: a class is missing from a split.
    """
    for option, limit in (("--limit-train", limit_train), ("--limit-test", limit_test)):
        if limit is not None and limit < 1:
            raise Refused(f"{option}: must be at least 1, got {limit}")
    classes = len(source.classes)

    def cut(positions: Tensor, count: int, purpose: str) -> tuple[Tensor, Tensor]:
        order = spread(source.labels, positions, derive(seed, "split", purpose))
        return order[:count], order[count:]

    everything = torch.arange(len(source.labels))
    if source.train_count is None:
        test, train = cut(everything, max(len(everything) // 5, classes), "test")
    else:
        train, test = everything[: source.train_count], everything[source.train_count :]
    train, _ = cut(train, len(train) if limit_train is None else limit_train, "limit-train")
    test, _ = cut(test, len(test) if limit_test is None else limit_test, "limit-test")
    count = len(train)
    least = _CALIBRATION_LEAST if count >= 8 * _CALIBRATION_LEAST else 0
    val, train = cut(train, max(min(count // 10, 5000), classes), "val")
    calib, train = cut(train, max(min(count // 10, 512), least, classes), "calib")

    parts = {"train": train, "val": val, "calib": calib, "test": test}
    for name, positions in parts.items():
        option, limit = (
            ("--limit-test", limit_test) if name == "test" else ("--limit-train", limit_train)
        )
        remedy = (
            "add images of it or remove the class" if limit is None else f"raise {option} {limit}"
        )
        where = f"{source.name}: the {name} split ({len(positions)} images)"
        check_classes(source.labels[positions], source.classes, where, remedy)
    return parts
