"""Many image files, of which a few damaged ones may be left out."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from advprune.data.source import Reading
from advprune.errors import BadData

_CHUNK = 64
_ONE_BAD_IN = 1000


class Undecodable(BadData):
    """A file that is no whole image."""


def spared(count: int, reading: Reading) -> int:
    """How many of so many images may be damaged."""
    return count // _ONE_BAD_IN if reading.skip_bad else 0


def each(count: int, reading: Reading, look: Callable[[int], None]) -> dict[int, str]:
    """Look at so many images, with all cores; row -> why one is no whole image, where some may be.

    Raises:
        BadData: what `look` raises; or more are damaged than may be left out.
    """
    most = spared(count, reading)

    def some(start: int) -> dict[int, str]:
        bad: dict[int, str] = {}
        for row in range(start, min(start + _CHUNK, count)):
            try:
                look(row)
            except Undecodable as error:
                if not most:
                    raise
                bad[row] = str(error)
        return bad

    bad: dict[int, str] = {}
    with pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Reading the results in order reports the first bad file, whichever thread was faster.
        for found in pool.map(some, range(0, count, _CHUNK)):
            bad |= found
            if len(bad) > most:
                (first, *_) = bad.values()
                raise BadData(
                    f"{first}; it is one of more than {most} such, and --skip-bad leaves out no "
                    f"more than {most} of {count}"
                )
    return bad


@contextlib.contextmanager
def pillow_warnings() -> Iterator[None]:
    """Set for all threads, since filters are global."""
    with warnings.catch_warnings():
        # Broken metadata is common in photographs, and no pixel depends on it.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        # Pillow only warns about images above its pixel limit, up to twice of it.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
