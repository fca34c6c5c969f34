"""What each image file of a folder is, with nothing kept of its pixels but a digest."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from advprune.data.decode import Form, opened, pillow_warnings, ready
from advprune.data.source import Reading
from advprune.errors import BadData

_CHUNK = 64
KEY_BYTES = 16  # of a digest: among a million images two are alike by chance once in 1e26


@dataclass(frozen=True)
class Look:
    """One file that can be decoded.

    stored: format and mode as they are in the file, e.g. "PNG RGBA".
    form: after all that `Reading` asks for.
    extremes: the smallest and the largest value of each channel.
    key: the same for the same pixels, whatever file they come from.
    """

    stored: str
    form: Form
    extremes: tuple[tuple[int, int], ...]
    key: bytes


def looks(paths: Sequence[Path], reading: Reading) -> Iterator[Look | BadData]:
    """Every file in order, each as it would be read, or why it would be refused.

    Memory holds a few decoded images at a time, however many there are.
    """

    def part(start: int) -> list[Look | BadData]:
        return [_look(path, reading) for path in paths[start : start + _CHUNK]]

    with pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(part, range(0, len(paths), _CHUNK)):
            yield from found


def _look(path: Path, reading: Reading) -> Look | BadData:
    try:
        with opened(path) as image:
            stored = f"{image.format} {image.mode}"
            seen = ready(image, path, reading)
            form, extremes = Form(seen.mode, seen.size), _extremes(seen)
            return Look(stored, form, extremes, key(form, seen.tobytes()))
    except BadData as error:
        return type(error)(
            str(error)
        )  # anew, since a raised one holds the image through its frames


def _extremes(image: Image.Image) -> tuple[tuple[int, int], ...]:
    found = image.getextrema()
    pairs = found if isinstance(found[0], tuple) else (found,)
    return tuple((int(low), int(high)) for low, high in pairs)  # pyright: ignore


def key(form: Form, pixels: bytes) -> bytes:
    """A digest of the pixels of an image of this form, channels last."""
    start = f"{form.mode} {form.size}".encode()
    return hashlib.blake2b(start + pixels, digest_size=KEY_BYTES).digest()
