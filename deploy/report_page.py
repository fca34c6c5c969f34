"""The report of a run as a page: one file that loads nothing, in light and dark, screen and print.

Names of models, layers and classes come from users. So everything is escaped, and the page's own
policy lets a browser apply one style, run one script and show images that lie in the page; all
else is refused. The page is complete without the script.
"""

from typing import Any

import numpy as np
from jinja2 import UndefinedError
from numpy.typing import NDArray

from deploy.chart_curve import security
from deploy.chart_speed import speed
from deploy.errors import DeployError
from deploy.pages import render
from deploy.pictures import difference, eight_bits, png
from deploy.report import (
    MEANING,
    attacks_of,
    checked,
    health_in_words,
    removed,
    ships,
    smaller,
)

_LARGEST = 300_000  # characters of all images of one kind in a page: it is to stay below 1 MB
_DOUBTS = ("INVALID", "SUSPECT", "OK")


def render_html(
    report: dict[str, Any], clean: NDArray[np.uint8], adversarial: NDArray[np.float32]
) -> str:
    """The page.

    Args:
        clean, adversarial: (M, C, H, W), the images of the gallery, in the order of its items.

    Raises:
        DeployError: 65, the report lacks something or has another schema.
    """
    checked(report)
    layers, structure = report["sparsity"]["layers"], report.get("structure")
    name = ships(report)["name"]
    shown = _specimens(report["gallery"]["items"], clean, adversarial)
    extra = {
        "meaning": MEANING[report["verdict"]["status"]].format(name),
        "removed": removed(report),
        "ships": ships(report),
        "attacks": attacks_of(report),
        "structure": structure,
        "security": security(report["curve"], name, report["threat"]["eps"]),
        "speed": speed(report["engines"], name, structure and structure["dense"]),
        "smaller": smaller(report),
        "widest": max((layer["kept"] / layer["total"] for layer in layers), default=0.0),
        "health": sorted(report["health"], key=lambda check: _DOUBTS.index(check["status"])),
        "believed": health_in_words(report),
        "flipped": [item for item in shown if item["why"] != "broken"],
        "broken": [item for item in shown if item["why"] == "broken"],
        "seconds": sum(stage["seconds"] for stage in report["stages"]),
    }
    try:
        return render("report.html.j2", report | extra)
    except UndefinedError as error:
        raise DeployError(f"report: {error.message}; run the pipeline again", 65) from error


def _specimens(
    items: list[dict[str, Any]], clean: NDArray[np.uint8], adversarial: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """The items of the gallery with their pictures, as many of a kind as the page has room for."""
    shown: list[dict[str, Any]] = []
    room = {"flipped": _LARGEST, "broken": _LARGEST}
    for item, before, after in zip(items, clean, adversarial, strict=True):
        kind = "broken" if item["why"] == "broken" else "flipped"
        pictures: dict[str, Any] = {"image": png(before)}
        if item["attack"] is not None:
            added, factor = difference(before, after)
            pictures |= {"attacked_image": png(eight_bits(after)), "difference": png(added)}
            pictures["factor"] = factor
        room[kind] -= sum(len(text) for text in pictures.values() if isinstance(text, str))
        if room[kind] >= 0:
            shown.append(item | pictures)
    return shown
