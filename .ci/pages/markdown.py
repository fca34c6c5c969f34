"""Markdown as GitHub reads it: tables, and text in which no sign means anything."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MADE = "<!-- Made by `make docs`; what is edited here is lost. -->"


def plain(text: str) -> str:
    """Text whose signs are meant as they stand; `x_1`, `a * b` and `E[x]` need no help."""
    return re.sub(r"([\\<$`~]|\*(?! )|(?<!\w)_|_(?!\w))", r"\\\1", text)


def sentence(text: str) -> str:
    """The same, with an end."""
    return plain(text) + ("" if text[-1] in ".?!" else ".")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars in its cells are escaped, also those in code."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(_row(line) for line in lines)


def code(value: Any) -> str:
    """A value as one types it; nothing where there is none."""
    if value is None or value == () or value == []:
        return ""
    return f"`{value_of(value)}`"


def value_of(value: Any) -> str:
    """A value in the words of a recipe; a radius in 255ths where it is one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        steps = value * 255
        if 0 < value < 1 and abs(steps - round(steps)) < 1e-9 and round(value, 4) != value:
            return f"{round(steps)}/255"
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_of, value))
    return value.as_posix() if isinstance(value, Path) else str(value)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
