"""What every kind of data set gives: labels at once, images only when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from advprune.errors import Refused


@dataclass(frozen=True)
class Reading:
    """How image files are read, where the user has a choice.

    image_size: resize the shorter side to this many pixels and crop the centre; None: as they are.
    to_rgb: turn grey, CMYK, transparent and 16-bit pixels into RGB instead of refusing them.
    skip_bad: leave out files that cannot be decoded, at most one of a thousand.
    """

    image_size: int | None = None
    to_rgb: bool = False
    skip_bad: bool = False

    def demand_none(self, spec: str, form: str) -> None:
        """Raises Refused where anything was chosen for a set whose images are no files."""
        size = "" if self.image_size is None else f"--image-size {self.image_size}"
        chosen = size or ("--convert" * self.to_rgb) or ("--skip-bad" * self.skip_bad)
        if chosen:
            raise Refused(f"{spec}: {chosen} is only for folders and imagenet; {spec} are {form}")


AS_IT_IS = Reading()


class Fetched(NamedTuple):
    """Images uint8 (n, C, H, W), and why some rows could not be read; those hold nothing."""

    images: Tensor
    bad: Mapping[int, str] = {}


class Recorded(NamedTuple):
    """Image files that stay where they are, n of them.

    root: the folder of the set, without links.
    names: of the files in it, as bytes.
    digests: uint8 (n, 32), SHA-256 of each file's content.
    counts: int64 (C, 256), how often each channel has each value, in the form of the set.
    reading: how they were read.
    bad: as of `Fetched`; those rows count for nothing.
    """

    root: Path
    names: Sequence[bytes]
    digests: Tensor
    counts: Tensor
    reading: Reading
    bad: Mapping[int, str] = {}


@dataclass(frozen=True)
class Labelled:
    """What is known of a data set before any image is.

    labels: int64 (N,) of every image, the training images first and then the test images.
    train_count: how many of them are training images; None when there is no test set.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    train_count: int | None


@dataclass(frozen=True)
class Source(Labelled):
    """A data set whose labels are known and whose images may still be files.

    augment: what training does to the images, see `augmentation.py`.
    fetch: int64 (n,) positions -> the images.
    read: image files, which need not be of this data set -> uint8 (n, C, H, W), in its form.
    record: int64 (n,) positions -> their files, where the images are files below one folder.
    """

    augment: str
    fetch: Callable[[Tensor], Fetched]
    read: Callable[[Sequence[Path]], Tensor]
    record: Callable[[Tensor], Recorded] | None = None


class Kind(Protocol):
    """One module of this package that knows how to open some data sets."""

    @property
    def NAMES(self) -> dict[str, str]:
        """The name of each data set, and one line on it."""
        ...

    def open_source(self, spec: str, data_dir: Path, reading: Reading) -> Source: ...

    def fingerprint(self, spec: str, data_dir: Path) -> str:
        """A hexadecimal identity of the stored files, without decoding them."""
        ...
