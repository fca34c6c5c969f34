"""Image files to one uint8 tensor, with Pillow and threads."""

import contextlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advprune.data.source import AS_IT_IS, Fetched, Reading
from advprune.data.sparing import Undecodable, each, pillow_warnings, spared
from advprune.errors import BadData, Refused

# What Pillow raises on damaged files of the common formats.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_EIGHT_BITS = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK"))


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


def probe(paths: Sequence[Path], reading: Reading) -> Form:
    """The form of the first image, which the others have to share.

    Raises:
        BadData: as `decode`; where damaged files may be left out, it is the first sound one.
    """
    side = reading.image_size
    for path in paths[: spared(len(paths), reading)]:
        with contextlib.suppress(Undecodable):
            return _form(path, side, reading.to_rgb)
    return _form(paths[spared(len(paths), reading)], side, reading.to_rgb)


def decode(paths: Sequence[Path], form: Form, reading: Reading = AS_IT_IS) -> Tensor:
    """Decode images into uint8 (N, C, H, W), each of them or none.

    Raises:
        BadData: an image is damaged, too large to be honest, or not of this form.
        Refused: the images would not fit into half of the free memory.
    """
    return fetch(paths, form, replace(reading, skip_bad=False)).images


def fetch(paths: Sequence[Path], form: Form, reading: Reading) -> Fetched:
    """Decode images into uint8 (N, C, H, W), but for damaged ones where they may be left out.

    Raises:
        BadData, Refused: as `decode`; also where more are damaged than may be left out.
    """
    check_memory(len(paths), form)
    pixels = np.zeros((len(paths), *form.shape), dtype=np.uint8)

    def fill(row: int) -> None:
        with opened(path := paths[row]) as image:
            pixels[row] = as_array(ready(image, path, reading), path, form)

    return Fetched(torch.from_numpy(pixels), each(len(paths), reading, fill))


def _form(path: Path, side: int | None, to_rgb: bool) -> Form:
    with pillow_warnings(), opened(path) as image:
        size = image.size if side is None else (side, side)
        return Form(plain(image, path, to_rgb).mode, size)


def free_memory() -> int:
    """Bytes that can be allocated without swapping; all of the memory where this is not told."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits(count: int, form: Form) -> bool:
    """Whether so many images take no more than half of the free memory."""
    return count * int(np.prod(form.shape)) <= free_memory() / 2


def check_memory(count: int, form: Form) -> None:
    if not fits(count, form):
        needed, free = count * int(np.prod(form.shape)), free_memory()
        raise Refused(
            f"{count} images of {form.size[0]}x{form.size[1]} need {needed / 1e9:.1f} GB, more than"
            f" half of the {free / 1e9:.1f} GB of free memory; lower --limit-train, --limit-test or"
            " --image-size, give fewer extra images, or leave those to train on in their files with"
            " --stream, so that only those to measure and calibrate with are in memory"
        )


@contextlib.contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image in a file, or in what was read from it."""
    try:
        if content is None and not path.is_file():  # a pipe would be waited for without end
            raise OSError("no plain file")
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except _BOMB as error:
        raise BadData(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels; remove it or scale it down"
        ) from error
    except _DAMAGE as error:
        raise Undecodable(f"{path}: cannot be decoded ({error}); replace or remove it") from error


def plain(image: Image.Image, path: Path, to_rgb: bool) -> Image.Image:
    """The image as 8-bit grey or colour, if that loses nothing; or else as RGB if it may lose.

    Transparency is dropped, as torchvision's loader does; of 16 bits the upper eight stay.
    """
    if to_rgb and image.mode in _EIGHT_BITS:
        return image.convert("RGB")
    if to_rgb and _has_16_bits(image):
        # Pillow would cut every value above 255 down to it.
        upper = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.has_transparency_data:
        mode = f"{image.mode} with transparency"
    elif _has_16_bits(image):
        # Pillow keeps the upper byte of 16-bit colour, and says nothing.
        mode = f"{image.mode} of 16 bits"
    elif image.mode == "P":
        return image.convert("RGB")
    elif image.mode in ("L", "RGB"):
        return image
    else:
        mode = image.mode
    hint = "" if to_rgb else ", or all images with --convert rgb"
    raise BadData(f"{path}: pixels are {mode}; convert it to L (8-bit grey) or RGB{hint}")


def _has_16_bits(image: Image.Image) -> bool:
    return any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def mismatch(found: Form, path: Path, form: Form) -> BadData | None:
    """Why an image of one form cannot join a set of another; None where it can."""
    if found.mode != form.mode:
        return BadData(
            f"{path}: is {found.mode} in a set of {form.mode} images; convert one of them, or all "
            "images with --convert rgb"
        )
    if found.size != form.size:
        return BadData(
            f"{path}: is {found.size[0]}x{found.size[1]} in a set of {form.size[0]}x{form.size[1]} "
            "images; scale it, or bring all images of folders to one size with --image-size"
        )
    return None


def ready(image: Image.Image, path: Path, reading: Reading) -> Image.Image:
    """The image as the network sees it: 8-bit grey or colour, in the size that is asked for."""
    image = plain(image, path, reading.to_rgb)
    return image if reading.image_size is None else _resized(image, reading.image_size)


def as_array(image: Image.Image, path: Path, form: Form) -> np.ndarray:
    """uint8 (C, H, W)

    Raises:
        BadData: the image is of another form.
    """
    if refusal := mismatch(Form(image.mode, image.size), path, form):
        raise refusal
    return np.asarray(image).reshape(*form.size[::-1], -1).transpose(2, 0, 1)


def _resized(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    width, height = side * width // shorter, side * height // shorter
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        # A very long strip is small in its file and grows with its shorter side.
        raise Image.DecompressionBombError(f"{width}x{height} after resizing")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
