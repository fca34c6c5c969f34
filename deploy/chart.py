"""What drawings share: a canvas in units of an SVG, the marks on its axes, one look per engine.

Drawings are points and words; templates make SVG of them, and the style of the page colours it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# One for each series, around (0, 0): a circle, a square, a diamond, triangles up and down.
SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
    "M0,-6L6,4.5H-6z",
    "M0,6L6,-4.5H-6z",
)


@dataclass(frozen=True)
class Canvas:
    """An area to draw in, and what lies at its ends.

    Attributes:
        x, y: the values at left and right, at bottom and top.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 440
    height: int = 290
    left: int = 52
    right: int = 428
    top: int = 12
    bottom: int = 232

    def across(self, value: float) -> float:
        """Where a value lies from the left."""
        low, high = self.x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def down(self, value: float) -> float:
        """Where a value lies from the top."""
        low, high = self.y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


@dataclass(frozen=True)
class Mark:
    """A place on an axis, in units of the canvas, and what is written there."""

    at: float
    label: str


def series(engines: Iterable[str], ships: str) -> dict[str, int]:
    """The look of each engine by its number: 0 for the one that ships, then in their order."""
    others = [name for name in engines if name != ships]
    return {ships: 0} | {name: 1 + i % (len(SHAPES) - 1) for i, name in enumerate(others)}


def steps(most: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to the first that is not below `most`, about `count` of them."""
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(round_one * power for round_one in (1, 2, 2.5, 5, 10) if round_one * power >= rough)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]
