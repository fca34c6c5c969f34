"""Latency against robustness as a drawing: a point for each engine, a line for the dense one."""

import math
from typing import Any

from deploy.chart import SHAPES, Canvas, Mark, series, steps
from deploy.outcome import percent
from deploy.words import interval

_ROOM = 1.06  # beside the slowest


def speed(
    engines: list[dict[str, Any]], ships: str, dense: dict[str, Any] | None
) -> dict[str, Any]:
    """What an SVG shows of every engine: milliseconds to the right, worst-case accuracy upwards.

    Milliseconds start at 0, so that lengths are ratios; accuracies at a multiple of 10 % below all
    intervals, so that these can be seen.

    Args:
        engines: of a report.
        ships: the engine that the words are about.
        dense: latency of the dense network, where it was timed.

    Returns:
        "canvas", "points", "rows", "columns", "dense" (a mark or None) and "summary".
    """
    times = [engine["latency"]["p50_ms"] for engine in engines]
    times += [dense["p50_ms"]] if dense else []
    ticks = steps(max(times) * _ROOM)
    low = math.floor(10 * min(engine["worst"]["low"] for engine in engines)) / 10
    high = math.ceil(10 * max(engine["worst"]["high"] for engine in engines)) / 10
    canvas = Canvas(x=(0, ticks[-1]), y=(low, max(high, low + 0.1)))
    looks = series((engine["name"] for engine in engines), ships)
    points = [
        {
            "name": engine["name"],
            "look": looks[engine["name"]],
            "shape": SHAPES[looks[engine["name"]]],
            "x": canvas.across(engine["latency"]["p50_ms"]),
            "y": canvas.down(engine["worst"]["value"]),
            "low": canvas.down(engine["worst"]["low"]),
            "high": canvas.down(engine["worst"]["high"]),
            "said": f"{engine['latency']['p50_ms']:.3g} ms, "
            f"{percent(engine['worst']['value'])} {interval(engine['worst'])}",
        }
        for engine in engines
    ]
    rows = round(10 * (canvas.y[1] - low))
    shares = [low + (canvas.y[1] - low) * i / rows for i in range(rows + 1)]
    return {
        "canvas": canvas,
        "points": points,
        "rows": [Mark(canvas.down(share), f"{100 * share:.0f} %") for share in shares],
        "columns": [Mark(canvas.across(tick), f"{tick:.3g}") for tick in ticks],
        "dense": dense and Mark(canvas.across(dense["p50_ms"]), f"{dense['p50_ms']:.3g} ms"),
        "summary": "Latency against robustness. "
        + "; ".join(f"{point['name']}: {point['said']}" for point in points)
        + (f"; the dense network takes {dense['p50_ms']:.3g} ms" if dense else ""),
    }
