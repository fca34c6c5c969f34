"""Showing a page, or a table that is wider than most terminals, to the one who asked for it."""

import shutil
import sys
import webbrowser
from pathlib import Path

from rich.console import Console

_WIDTH = 130  # characters of a line


def wide_console() -> Console:
    """Lines that a narrow terminal wraps: better than numbers that are cut off."""
    return Console(width=max(_WIDTH, shutil.get_terminal_size().columns))


def open_page(page: Path) -> None:
    """Have the system's browser show a page; where there is none, say so and go on."""
    if not webbrowser.open(page.resolve().as_uri()):
        sys.stderr.write(f"no browser to open {page} with\n")
