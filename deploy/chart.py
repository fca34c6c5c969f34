"""The security curve as a drawing: where its lines and its band lie on a canvas."""

from collections.abc import Sequence
from typing import Any

from deploy.words import radius

WIDTH, HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 34
_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def security(curve: dict[str, Any], ships: str, eps: float) -> dict[str, Any]:
    """Points of an SVG of WIDTH x HEIGHT for robust accuracy against eps.

    Args:
        curve: as `curves.security_curve` gives it.
        ships: the engine whose band is drawn.
        eps: the threat's, which is marked.

    Returns:
        "lines" (name, points, whether it ships), "band", "rows" and "columns" (place, label),
        "mark" (place, label), and "summary", all of it in words.
    """
    most = curve["eps"][-1] or 1.0
    grid = [_across(at / most) for at in curve["eps"]]

    def points(shares: Sequence[float]) -> list[str]:
        return [f"{x:.1f},{_down(share):.1f}" for x, share in zip(grid, shares, strict=True)]

    engines = curve["engines"]
    band = engines[ships]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": HEIGHT - _BOTTOM,
        "lines": [
            {"name": name, "points": " ".join(points(engine["accuracy"])), "ships": name == ships}
            for name, engine in engines.items()
        ],
        "band": " ".join([*points(band["high"]), *reversed(points(band["low"]))]),
        "rows": [(f"{_down(share):.1f}", f"{100 * share:.0f} %") for share in _QUARTERS],
        "columns": [(f"{_across(part):.1f}", f"{part * most:.3g}") for part in _QUARTERS],
        "mark": (f"{_across(eps / most):.1f}", radius(eps)),
        "summary": _summary(curve, ships),
    }


def _summary(curve: dict[str, Any], ships: str) -> str:
    """The curve of the engine that ships at five places."""
    shares = curve["engines"][ships]["accuracy"]
    places = [round(part * (len(shares) - 1)) for part in _QUARTERS]
    said = ", ".join(f"{100 * shares[i]:.0f} % at {curve['eps'][i]:.3g}" for i in places)
    return f"robust accuracy of {ships} against eps: {said}"


def _across(part: float) -> float:
    return _LEFT + part * (WIDTH - _LEFT - _RIGHT)


def _down(share: float) -> float:
    return _TOP + (1 - share) * (HEIGHT - _TOP - _BOTTOM)
