"""Numbers as people read them."""

import json
from collections.abc import Sequence
from typing import Any


def interval(value: dict[str, float]) -> str:
    """The two ends in percent: "[85.6–91.8]"."""
    return f"[{100 * value['low']:.1f}–{100 * value['high']:.1f}]"


def size(count: float) -> str:
    """Bytes in decimal units: 226_000 -> "226 kB"."""
    scaled, unit = _scaled(count, ("B", "kB", "MB", "GB"))
    return f"{number(scaled)} {unit}"


def duration(seconds: float) -> str:
    """0.42 -> "0.4 s", 81 -> "1:21", 3725 -> "1:02:05"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Three significant digits below a thousand, whole and in groups of three above."""
    if isinstance(value, int) or abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def count(value: float) -> str:
    """A large number to three digits: 555_422_720 -> "555 M"."""
    scaled, unit = _scaled(value, ("", " k", " M", " G"))
    return f"{scaled:.3g}{unit}"


def _scaled(value: float, units: Sequence[str]) -> tuple[float, str]:
    """A value below a thousand in the smallest of the units that allows it, or in the largest."""
    steps = 0
    while value >= 999.5 and steps < len(units) - 1:
        value, steps = value / 1000, steps + 1
    return value, units[steps]


def radius(eps: float) -> str:
    """An epsilon as people quote it, where it is whole steps of 8-bit pixels: "8/255"."""
    steps = round(255 * eps)
    return f"{steps}/255" if abs(255 * eps - steps) < 1e-6 else f"{eps:g}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted path, as text: {"a": {"b": 1}} -> {"a.b": "1"}."""
    lines: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return lines
