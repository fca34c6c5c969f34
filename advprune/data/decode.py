"""Image files to one uint8 tensor, with Pillow and threads."""

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advprune.errors import BadData, Refused

# What Pillow raises on damaged files of the common formats.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_CHUNK = 256


@dataclass(frozen=True)
class Form:
    """What all images of a set have in common.

    mode: "L" (grey) or "RGB".
    size: (width, height) in pixels, after resizing.
    """

    mode: str
    size: tuple[int, int]

    @classmethod
    def of(cls, images: Tensor) -> "Form":
        """The form of images (N, C, H, W)."""
        channels, height, width = images.shape[1:]
        return cls("RGB" if channels == 3 else "L", (width, height))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return (3 if self.mode == "RGB" else 1, self.size[1], self.size[0])


def probe(path: Path, image_size: int | None) -> Form:
    """The form of one image, which the others have to share.

    Raises:
        BadData: as `decode`.
    """
    with _pillow_warnings(), _opened(path) as image:
        size = image.size if image_size is None else (image_size, image_size)
        return Form(_plain(image, path).mode, size)


def decode(
    paths: Sequence[Path], form: Form, image_size: int | None = None, convert: bool = False
) -> Tensor:
    """Decode images into uint8 (N, C, H, W).

    Args:
        image_size: resize the shorter side to this and crop the centre (bilinear, antialiased).
        convert: turn every kind of pixel into `form.mode` instead of refusing others.

    Raises:
        BadData: an image is damaged, too large to be honest, or not of this form.
        Refused: the images would not fit into half of the free memory.
    """
    _check_memory(len(paths), form)
    pixels = np.empty((len(paths), *form.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for row, path in enumerate(paths[start : start + _CHUNK], start):
            with _opened(path) as image:
                pixels[row] = _pixels(image, path, form, image_size, convert)

    with _pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Reading the results in order reports the first bad file, whichever thread was faster.
        for _ in pool.map(fill, range(0, len(paths), _CHUNK)):
            pass
    return torch.from_numpy(pixels)


def free_memory() -> int:
    """Bytes that can be allocated without swapping; all of the memory where this is not told."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(count: int, form: Form) -> None:
    needed, free = count * int(np.prod(form.shape)), free_memory()
    if needed > free / 2:
        raise Refused(
            f"{count} images of {form.size[0]}x{form.size[1]} need {needed / 1e9:.1f} GB, more than"
            f" half of the {free / 1e9:.1f} GB of free memory; lower --limit-train, --limit-test or"
            " --image-size, or give fewer extra images"
        )


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Set for all threads, since filters are global."""
    with warnings.catch_warnings():
        # Broken metadata is common in photographs, and no pixel depends on it.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        # Pillow only warns about images above its pixel limit, up to twice of it.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise OSError("no plain file")
        with Image.open(path) as image:
            yield image
    except _BOMB as error:
        raise BadData(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels; remove it or scale it down"
        ) from error
    except _DAMAGE as error:
        raise BadData(f"{path}: cannot be decoded ({error}); replace or remove it") from error


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image as 8-bit grey or colour, if that loses nothing."""
    if image.has_transparency_data:
        mode = f"{image.mode} with transparency"
    elif any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        # Pillow keeps the upper byte of 16-bit colour, and says nothing.
        mode = f"{image.mode} of 16 bits"
    elif image.mode == "P":
        return image.convert("RGB")
    elif image.mode in ("L", "RGB"):
        return image
    else:
        mode = image.mode
    raise BadData(f"{path}: pixels are {mode}; convert it to L (8-bit grey) or RGB")


def _pixels(
    image: Image.Image, path: Path, form: Form, image_size: int | None, convert: bool
) -> np.ndarray:
    """uint8 (C, H, W)"""
    image = image.convert(form.mode) if convert else _plain(image, path)
    if image.mode != form.mode:
        raise BadData(
            f"{path}: is {image.mode} in a set of {form.mode} images; convert one of them"
        )
    if image_size is not None:
        image = _resize(image, image_size)
    if image.size != form.size:
        raise BadData(
            f"{path}: is {image.size[0]}x{image.size[1]} in a set of {form.size[0]}x{form.size[1]} "
            "images; scale it, or bring all images of folders to one size with --image-size"
        )
    return np.asarray(image).reshape(*form.size[::-1], -1).transpose(2, 0, 1)


def _resize(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    width, height = side * width // shorter, side * height // shorter
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        # A very long strip is small in its file and grows with its shorter side.
        raise Image.DecompressionBombError(f"{width}x{height} after resizing")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
