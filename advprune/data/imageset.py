"""Four disjoint splits of images with their labels and identities, and extra images."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advprune.errors import BadData

if TYPE_CHECKING:
    from advprune.data.stream import Stream

SPLITS = ("train", "val", "calib", "test")


@dataclass(frozen=True)
class Split:
    """Some images of a data set, in memory.

    Any first n images are a fair sample: classes are spread evenly over the order.

    images:  uint8 (N, C, H, W)
    labels:  int64 (N,)
    indices: int64 (N,), the identity of each image in its source; unique in its image set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that there is, by name."""
        return dict(vars(self))

    @property
    def counts(self) -> Tensor:
        """int64 (C, 256), how often each channel has each value."""
        # A histogram of bytes gives mean and deviation exactly, without a float copy of all images.
        channels = self.images.unbind(1)
        return torch.stack([torch.bincount(c.flatten(), minlength=256) for c in channels]).cpu()

    def load(self, parts: Sequence[Tensor], seed: int | None) -> Iterator["Split"]:
        """The images at the positions (int64 (n,)) of each part, one part after the other.

        Args:
            seed: for images that training sees otherwise as soon as they are read, see `Stream`.
        """
        for rows in parts:
            yield self.subset(rows.to(self.images.device))

    def subset(self, rows: Tensor | slice) -> "Split":
        """Some of the images: int64 positions, bool (N,) or a slice."""
        return Split(self.images[rows], self.labels[rows], self.indices[rows])

    def first(self, count: int) -> "Split":
        """The first images, stratified by class; all where there are fewer."""
        return self.subset(slice(count))

    def and_those_of(self, other: "Split") -> "Split":
        """The images of both; their classes are spread over each part, not over the whole."""
        return Split(
            torch.cat([self.images, other.images]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.indices, other.indices]),
        )

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device), self.indices.to(device))


@dataclass(frozen=True)
class ImageSet:
    """A data set, ready to use.

    train:   in memory, or in its files.
    augment: one of `augmentation.KINDS`.
    digest:  see `digest()`.
    extra:   more images to train on, beside those of the data set; see `extra.py`.
    """

    name: str
    classes: tuple[str, ...]
    train: "Split | Stream"
    val: Split
    calib: Split
    test: Split
    augment: str
    digest: str
    extra: Split | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.val.images.shape[1:]
        return channels, height, width

    @property
    def splits(self) -> "dict[str, Split | Stream]":
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def parts(self) -> "dict[str, Split | Stream]":
        """The splits, and "extra" if there are extra images."""
        return self.splits if self.extra is None else {**self.splits, "extra": self.extra}

    def to(self, device: torch.device | str) -> "ImageSet":
        return replace(self, **{name: split.to(device) for name, split in self.parts.items()})

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images, in [0, 1].

        Exact also where they are streamed: the data stage has seen all of them once, as measured.

        Raises:
            BadData: a channel is constant, so it cannot be normalised.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel, counts in enumerate(self.train.counts):
            share = counts.to(torch.float64) / counts.sum()
            mean = (share * values).sum()
            variance = (share * (values - mean) ** 2).sum()
            if counts.count_nonzero() == 1:
                raise constant_channel(self.name, channel, round(mean.item() * 255))
            means.append(mean.item())
            deviations.append(variance.sqrt().item())
        return tuple(means), tuple(deviations)


@dataclass(frozen=True)
class Loaded(ImageSet):
    """A data set fresh from its files.

    skipped: why some of them were left out, a line for each.
    """

    skipped: tuple[str, ...] = ()


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def digest(classes: tuple[str, ...], augment: str, parts: "Mapping[str, Split | Stream]") -> str:
    """SHA-256 over everything that a result can depend on.

    The name is left out: a folder that was moved or renamed is still the same data.
    """
    tensors = {
        f"{name}.{field}": tensor
        for name, split in parts.items()
        for field, tensor in split.tensors.items()
    }
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    header = {"classes": classes, "augment": augment, "tensors": shapes}
    hasher = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        hasher.update(tensors[name].cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def constant_channel(name: str, channel: int, value: int) -> BadData:
    """What to say of a channel that cannot be normalised."""
    return BadData(
        f"{name}: channel {channel} has the value {value} in every training image; "
        "remove the channel"
    )


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Refuse labels outside [0, classes).

    Raises:
        BadData: naming the first such label and its position.
    """
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise BadData(
            f"{where}: label {int(labels[first])} of image {first} lies outside "
            f"[0, {classes - 1}]; number the {classes} classes from 0"
        )


def check_classes(labels: Tensor, classes: tuple[str, ...], where: str, remedy: str) -> None:
    """Refuse a split that lacks a class: accuracy on it would mean nothing.

    Raises:
        BadData: naming the first class that is missing.
    """
    missing = (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten()
    if len(missing):
        raise BadData(f"{where} has no image of class {classes[int(missing[0])]!r}; {remedy}")
