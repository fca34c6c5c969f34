"""What every kind of data set gives: labels at once, images only when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """A data set whose labels are known and whose images may still be files.

    labels: int64 (N,) of every image, the training images first and then the test images.
    train_count: how many of them are training images; None when there is no test set.
    augment: what training does to the images, see `augmentation.py`.
    fetch: int64 (n,) positions -> uint8 (n, C, H, W).
    read: image files, which need not be of this data set -> uint8 (n, C, H, W), in its form.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    train_count: int | None
    augment: str
    fetch: Callable[[Tensor], Tensor]
    read: Callable[[Sequence[Path]], Tensor]


class Kind(Protocol):
    """One module of this package that knows how to open some data sets."""

    @property
    def NAMES(self) -> dict[str, str]:
        """The name of each data set, and one line on it."""
        ...

    def open_source(self, spec: str, data_dir: Path, image_size: int | None) -> Source: ...

    def fingerprint(self, spec: str, data_dir: Path) -> str:
        """A hexadecimal identity of the stored files, without decoding them."""
        ...
