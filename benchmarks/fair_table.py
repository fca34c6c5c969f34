"""The tables of `fair.py`: shares with intervals, and ranks with theirs.

A method's figure is the mean over seeds of the share of images that are right in the worst case.
Its interval, and that of its rank, are of 2,000 draws of images, the same ones for all methods, and
of seeds (bootstrap; 95 %). Where two intervals of ranks overlap, the order is not settled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.packing import unpack
from deploy.statistics import clopper_pearson

DRAWS = 2000
RADII = (0.05, 0.1, 0.15, 0.2, 0.25)
TITLES = {"US": "Single weights", "S": "Whole channels"}
_STALE = "‡"  # the method's file has changed since
_DOUBTED = "†"

Cells = Sequence[Mapping[str, Any]]


def render(cells: Cells, current: Mapping[str, str]) -> str:
    """Markdown of all tables.

    Args:
        current: key of a cell -> digest of its method's file as it stands.
    """
    parts = []
    for structure, title in TITLES.items():
        chosen = [cell for cell in cells if cell["row"].split()[1] == structure]
        if chosen:
            parts.append(f"### {title}\n\n{_ranked(chosen, current)}")
            parts.append(f"{title}, distances\n\n{_curves(chosen)}")
    return "\n\n".join(parts)


def ranks(flags: Mapping[str, NDArray[np.bool_]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Method -> mean share, its interval, rank and the interval of the rank.

    Args:
        flags: (seeds, images) of each method, of the same images; the number of seeds may differ.
    """
    draw = np.random.default_rng(seed)
    images = next(iter(flags.values())).shape[1]
    means = {name: float(found.mean(dtype=np.float64)) for name, found in flags.items()}
    drawn = np.empty((DRAWS, len(flags)))
    for i in range(DRAWS):
        weights = draw.multinomial(images, np.full(images, 1 / images)) / images
        for j, found in enumerate(flags.values()):
            seeds = draw.integers(len(found), size=len(found))
            drawn[i, j] = (found[seeds] @ weights).mean()
    order = _places(drawn)
    return {
        name: {
            "mean": means[name],
            "low": float(np.quantile(drawn[:, j], 0.025)),
            "high": float(np.quantile(drawn[:, j], 0.975)),
            "rank": 1 + sum(other > means[name] for other in means.values()),
            "rank_low": float(np.quantile(order[:, j], 0.025)),
            "rank_high": float(np.quantile(order[:, j], 0.975)),
        }
        for j, name in enumerate(flags)
    }


def _places(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value in its row, 1 for the largest; equals share the mean of theirs."""
    above = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return 1 + above + (equal - 1) / 2


def _ranked(cells: Cells, current: Mapping[str, str]) -> str:
    sparsities = sorted({cell["sparsity"] for cell in cells})
    columns = {sparsity: _column(cells, sparsity, current) for sparsity in sparsities}
    rows = sorted({cell["row"] for cell in cells}, key=lambda row: (_order(row, columns), row))
    head = " | ".join(f"{100 * sparsity:g} %" for sparsity in sparsities)
    lines = [f"| method | {head} |", "|---|" + "---|" * len(sparsities)]
    for row in rows:
        texts = [columns[sparsity].get(row, ("–", math.inf))[0] for sparsity in sparsities]
        lines.append(f"| {row.split()[0]} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _order(row: str, columns: Mapping[float, Mapping[str, tuple[str, float]]]) -> float:
    """The mean rank over the sparsities, refusals last."""
    places = [column.get(row, ("", math.inf))[1] for column in columns.values()]
    return sum(places) / len(places)


def _column(cells: Cells, sparsity: float, current: Mapping[str, str]) -> dict:
    """Row -> the text of its cell, and its rank."""
    here = [cell for cell in cells if cell["sparsity"] == sparsity]
    done: dict[str, list[Mapping[str, Any]]] = {}
    texts: dict[str, tuple[str, float]] = {}
    for cell in here:
        if "refused" in cell:
            texts[cell["row"]] = ("refused", math.inf)
        else:
            done.setdefault(cell["row"], []).append(cell)
    if not done:
        return texts
    flags = {
        row: np.array([unpack(cell["flags"]["worst"], cell["images"]) for cell in found])
        for row, found in done.items()
    }
    for row, rank in ranks(flags).items():
        text = _cell(done[row], rank)
        if any(cell["source"] != current[cell["key"]] for cell in done[row]):
            text += f" {_STALE}"
        texts[row] = (text, rank["rank"])
    return texts


def _cell(found: Cells, rank: Mapping[str, float]) -> str:
    clean = 100 * float(np.mean([cell["clean"] for cell in found]))
    gap = 100 * float(np.mean([cell["worst"] - cell["float_worst"] for cell in found]))
    doubted = _DOUBTED * sum(cell["status"] not in ("PASS", "FAIL") for cell in found)
    return (
        f"{clean:.1f} / **{100 * rank['mean']:.1f}** "
        f"[{100 * rank['low']:.1f}, {100 * rank['high']:.1f}]{doubted}, "
        f"AA {_autoattack(found)}, int8 {gap:+.1f}, "
        f"rank {rank['rank']:.0f} [{rank['rank_low']:.0f}, {rank['rank_high']:.0f}]"
    )


def _autoattack(found: Cells) -> str:
    flags: list[bool] = []
    for cell in found:
        if cell["autoattack"]:
            flags += unpack(cell["autoattack"]["flags"], cell["autoattack"]["images"])
    if not flags:
        return "–"
    low, high = clopper_pearson(sum(flags), len(flags))
    return f"{100 * sum(flags) / len(flags):.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _curves(cells: Cells) -> str:
    """Accuracy at other radii, by the distance to the nearest adversarial image."""
    head = " | ".join(f"{radius:g}" for radius in RADII)
    lines = [
        f"| method | removed | {head} | median distance |",
        "|---|--:|" + "--:|" * (len(RADII) + 1),
    ]
    groups = sorted({(cell["row"], cell["sparsity"]) for cell in cells if "refused" not in cell})
    for row, sparsity in groups:
        distances = np.array(
            [
                math.inf if one is None else one
                for cell in cells
                if (cell["row"], cell["sparsity"]) == (row, sparsity) and "refused" not in cell
                for one in cell["distances"]
            ]
        )
        shares = [f"{100 * (distances > radius).mean():.1f}" for radius in RADII]
        median = float(np.median(distances))
        lines.append(
            f"| {row.split()[0]} | {100 * sparsity:g} % | {' | '.join(shares)} | {median:.3f} |"
        )
    return "\n".join(lines)
