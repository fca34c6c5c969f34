"""Take the pictures of pages that the documentation shows: shoot.py PAGE.html OUT [NAME].

Needs a Chromium, as `make test-browser` does. Writes OUT/NAME-light.png, OUT/NAME-dark.png and, as
on a telephone, OUT/NAME-narrow.png; NAME is the page's own (report, board) if not given.
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browsing import opened

WIDE, NARROW = 1280, 375  # CSS pixels
_TALL = {WIDE: 1700, NARROW: 1900}  # CSS pixels from the top: a whole page would be unreadable
_COLOURS = 128  # flat areas and smoothed letters need no more, and it is half the bytes
LARGEST = 250_000  # bytes: pictures stay in the history of the repository for good


def shoot(page: Path, out: Path, name: str) -> list[Path]:
    """The top of a page wide and narrow, in light, and wide in dark.

    Raises:
        FileNotFoundError: there is no such page, or no Chromium on this machine.
        ValueError: a picture came out larger than pictures may be.
    """
    if not page.is_file():
        raise FileNotFoundError(f"{page}: no such page; give a run's report.html")
    made = []
    for look, width, dark in (
        ("light", WIDE, False),
        ("dark", WIDE, True),
        ("narrow", NARROW, False),
    ):
        path = out / f"{name}-{look}.png"
        with opened(page, width, dark=dark) as seen:
            seen.page.set_viewport_size({"width": width, "height": _TALL[width]})
            shot = Image.open(io.BytesIO(seen.page.screenshot()))
        shot.convert("RGB").quantize(_COLOURS).save(path, optimize=True)
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{path}: {size:,} bytes, more than {LARGEST:,}; show less of it")
        made.append(path)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("name", nargs="?")
    words = parser.parse_args()
    for path in shoot(words.page, words.out, words.name or words.page.stem):
        print(path)  # noqa: T201
