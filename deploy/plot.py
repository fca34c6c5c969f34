"""Where points, lines and ticks lie on a drawing, and which points no other one beats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from deploy.words import radius

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 32
_WIDE = 4.0  # the ratio of largest to smallest from which on a scale is logarithmic
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Axis:
    """Values on a line of pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (self._scaled(x) for x in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values inside, three of them at least where there is room."""
        if not self.log:
            rough = (self.high - self.low) / 5
            base = 10.0 ** math.floor(math.log10(rough))
            step = next(base * k for k in (1, 2, 5, 10) if base * k >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        many = self.high / self.low > 100
        values = [k * 10.0**decade for decade in decades for k in ((1,) if many else (1, 2, 5))]
        return [value for value in values if self.low <= value <= self.high]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats: none costs less and is worth as much, or is worth more.

    Args:
        points: cost and worth; those that are equal in both stand or fall together.

    Returns:
        Indices in the order of cost.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def scatter(points: Sequence[dict[str, Any]], label: Callable[[float], str]) -> dict[str, Any]:
    """A drawing of worth in [0, 1], upwards, against a positive cost.

    Args:
        points: each with "cost", "worth" (value, low, high), "place" (only costs that were measured
            at the same place share a front), and whatever the page needs besides.
        label: of a cost on its axis.
    """
    costs = [point["cost"] for point in points]
    log = max(costs) / min(costs) > _WIDE
    around = 1.25 if log else 1 + 0.5 * max(max(costs) / min(costs) - 1, 0.2)
    x = Axis(min(costs) / around, max(costs) * around, LEFT, WIDTH - RIGHT, log)
    ends = [point["worth"][end] for point in points for end in ("low", "high")]
    room = max(0.08 * (max(ends) - min(ends)), 0.02)
    low, high = max(min(ends) - room, 0.0), min(max(ends) + room, 1.0)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    drawn = [
        {
            **point,
            "x": x.at(point["cost"]),
            "y": y.at(point["worth"]["value"]),
            "low": y.at(point["worth"]["low"]),
            "high": y.at(point["worth"]["high"]),
            "on": False,
        }
        for point in points
    ]
    fronts = []
    for place in dict.fromkeys(point["place"] for point in points):
        here = [point for point in drawn if point["place"] == place]
        kept = [here[i] for i in pareto([(p["cost"], p["worth"]["value"]) for p in here])]
        for point in kept:
            point["on"] = True
        fronts.append({"place": place, "points": _stairs([(p["x"], p["y"]) for p in kept])})
    return {
        **_frame(x, y),
        "columns": [(x.at(tick), label(tick)) for tick in x.ticks()],
        "rows": [(y.at(tick), _percent(tick)) for tick in y.ticks()],
        "points": drawn,
        "fronts": fronts,
    }


def curves(lines: Sequence[dict[str, Any]], eps: Sequence[float]) -> dict[str, Any]:
    """A drawing of robust accuracy against eps.

    Args:
        lines: each with "eps", "accuracy", "low" and "high" at each, and what the page needs.
        eps: of the threats, which are marked.
    """
    most = max(line["eps"][-1] for line in lines) or 1.0
    x, y = Axis(0.0, most, LEFT, WIDTH - RIGHT), Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)

    def points(line: dict[str, Any], key: str) -> list[str]:
        pairs = zip(line["eps"], line[key], strict=True)
        return [f"{x.at(at)},{y.at(share)}" for at, share in pairs]

    return {
        **_frame(x, y),
        "columns": [(x.at(part * most), f"{part * most:.3g}") for part in _QUARTERS],
        "rows": [(y.at(share), _percent(share)) for share in _QUARTERS],
        "marks": [(x.at(value), radius(value)) for value in dict.fromkeys(eps)],
        "lines": [
            {
                **line,
                "points": " ".join(points(line, "accuracy")),
                "band": " ".join([*points(line, "high"), *reversed(points(line, "low"))]),
            }
            for line in lines
        ],
    }


def _frame(x: Axis, y: Axis) -> dict[str, float]:
    sides = {"left": x.start, "right": x.end, "top": y.end, "bottom": y.start}
    return {"width": WIDTH, "height": HEIGHT, **sides}


def _stairs(points: Sequence[tuple[float, float]]) -> str:
    """What can be had at each cost: level to the next point, then up to it."""
    corners = list(points[:1])
    for before, after in pairwise(points):
        corners += [(after[0], before[1]), after]
    return " ".join(f"{x},{y}" for x, y in corners)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
