"""The security curve as a drawing: lines and bands of robust accuracy against eps."""

from collections.abc import Sequence
from typing import Any

from deploy.chart import SHAPES, Canvas, Mark, series
from deploy.words import radius

_PARTS = (0, 0.25, 0.5, 0.75, 1)


def security(curve: dict[str, Any], ships: str, eps: float) -> dict[str, Any]:
    """What an SVG shows of the security curve.

    Args:
        curve: as `curves.security_curve` gives it.
        ships: the engine that the words are about.
        eps: the threat's, which is marked.

    Returns:
        "canvas"; "lines", the one that ships last, for it to be drawn on top; "rows" and "columns",
        the marks on the axes; "here", the mark of eps; "table", the curve in numbers at some
        places; and "summary", all of it in words.
    """
    grid, engines = curve["eps"], curve["engines"]
    canvas = Canvas(x=(0, grid[-1] or 1.0), y=(0, 1))
    looks = series(engines, ships)

    def points(shares: Sequence[float]) -> list[str]:
        places = zip(grid, shares, strict=True)
        return [f"{canvas.across(x):.1f},{canvas.down(share):.1f}" for x, share in places]

    lines = [
        {
            "name": name,
            "look": looks[name],
            "shape": SHAPES[looks[name]],
            "points": " ".join(points(engine["accuracy"])),
            "band": " ".join([*points(engine["high"]), *reversed(points(engine["low"]))]),
            "values": " ".join(f"{share:.4f}" for share in engine["accuracy"]),
        }
        for name, engine in engines.items()
    ]
    most = canvas.x[1]
    return {
        "canvas": canvas,
        "lines": sorted(lines, key=lambda line: line["name"] == ships),
        "rows": [Mark(canvas.down(part), f"{100 * part:.0f} %") for part in _PARTS],
        "columns": [Mark(canvas.across(part * most), f"{part * most:.3g}") for part in _PARTS],
        "here": Mark(canvas.across(eps), radius(eps)),
        "eps": " ".join(f"{at:.4f}" for at in grid),
        "table": _table(curve),
        "summary": _summary(curve, ships),
    }


def _table(curve: dict[str, Any]) -> list[tuple[float, list[float]]]:
    """At every tenth of the way: eps, and the accuracy of each engine."""
    every = max((len(curve["eps"]) - 1) // 10, 1)
    return [
        (eps, [engine["accuracy"][i] for engine in curve["engines"].values()])
        for i, eps in enumerate(curve["eps"])
        if i % every == 0
    ]


def _summary(curve: dict[str, Any], ships: str) -> str:
    """The curve of the engine that ships at five places."""
    shares = curve["engines"][ships]["accuracy"]
    places = [round(part * (len(shares) - 1)) for part in _PARTS]
    said = ", ".join(f"{100 * shares[i]:.0f} % at {curve['eps'][i]:.3g}" for i in places)
    return f"Security curve. Robust accuracy of {ships} against eps: {said}"
