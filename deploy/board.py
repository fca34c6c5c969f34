"""The board over many runs: ranked where they can be compared, side by side where they cannot.

Robust accuracies are comparable under one protocol: the same images, threat and attacks. So a board
has one part for each protocol, with ranks, Pareto fronts and means over seeds inside it alone.
What others have published stands apart from all of them.
"""

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.board_rows import published
from deploy.outcome import percent
from deploy.pages import render
from deploy.plot import scatter
from deploy.words import interval, number, radius, size


def parts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by protocol, most rows first, best row first.

    Returns:
        For each: "title"; "rows", each with its "rank" by the worst case of the engine that ships,
        None where its evaluation is not valid; "seeds", a line for each setting that was tried
        with several; and "places", where latencies were measured.
    """
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_protocol.setdefault(row["protocol"], []).append(row)
    found = [
        {
            "protocol": protocol,
            "title": _title(own[0]),
            "rows": _ranked(own),
            "seeds": _seeds(own),
            "places": list(dict.fromkeys(row["place"] for row in own)),
        }
        for protocol, own in by_protocol.items()
    ]
    found.sort(key=lambda part: (-len(part["rows"]), part["title"], part["protocol"]))
    titles = [part["title"] for part in found]
    for part in found:
        if titles.count(part["title"]) > 1:
            part["title"] += f" · protocol {part['protocol']}"
    return found


def render_board(
    rows: Sequence[dict[str, Any]],
    skipped: Sequence[dict[str, str]],
    links: dict[str, str],
) -> str:
    """The page.

    Args:
        rows: as `board_rows.measured` gives them.
        skipped: what was not taken, each as "run" and "why".
        links: address of the report of a run, by its name, where there is one.
    """
    reference, notes = published()
    shown = [{**part, "plots": _plots(part)} for part in parts(rows)]
    everything = [*rows, *reference]
    values = {
        "parts": shown,
        "published": reference,
        "notes": notes,
        "skipped": list(skipped),
        "links": links,
        "count": len(rows),
        "choices": {
            "data": sorted({row["data"] for row in everything}),
            "method": sorted({row["method"].lower() for row in everything}),
            "structure": sorted({row["structure"].split()[0] for row in everything}),
        },
    }
    return render("board.html.j2", values, script="board.js")


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the parts, one table each; the page has more columns."""
    for part in parts(rows):
        console.print(Text(part["title"], style="bold"))
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in _COLUMNS:
            left = column in ("method", "network", "structure")
            table.add_column(Text(column), justify="left" if left else "right", no_wrap=True)
        for row in part["rows"]:
            table.add_row(*(Text(words(row)) for words in _COLUMNS.values()))
        console.print(table)
        for line in part["seeds"]:
            clean, worst = (line["spread"][key]["text"] for key in ("clean", "worst"))
            said = f"clean {clean}, worst case {worst} over seeds {line['tried']}"
            console.print(Text(f"{line['what']}: {said}", style="dim"))


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "#": lambda row: "–" if row["rank"] is None else str(row["rank"]),
    "method": lambda row: row["method"],
    "network": lambda row: row["network"],
    "structure": lambda row: row["structure"],
    "gone": lambda row: _gone(row),
    "clean": lambda row: percent(row["clean"]["value"]),
    "worst": lambda row: f"{percent(row['worst']['value'])} {interval(row['worst'])}",
    "p50 ms": lambda row: f"{row['p50_ms']:.3g}",
    "download": lambda row: size(row["compressed_bytes"]),
    "verdict": lambda row: row["verdict"],
    "seed": lambda row: str(row["seed"]),
}


def _gone(row: dict[str, Any]) -> str:
    return f"{100 * row['sparsity']:.4g} %"


def _title(row: dict[str, Any]) -> str:
    images = f"{number(row['images'])} {row['split']} images"
    suite = f"suite {row['suite']}, {row['attacks']} attacks"
    return " · ".join([row["data"], f"{row['norm']} eps {radius(row['eps'])}", images, suite])


def _ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first; equals share a rank, and the next one counts them all."""
    ordered = sorted(rows, key=lambda row: (not row["valid"], -row["worst"]["value"], row["run"]))
    worst = [row["worst"]["value"] for row in ordered]
    return [
        {
            **row,
            "gone": _gone(row),
            "rank": worst.index(row["worst"]["value"]) + 1 if row["valid"] else None,
        }
        for row in ordered
    ]


def _seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each setting that has several."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["valid"]:
            by_setting.setdefault(row["setting"], []).append(row)
    lines = []
    for setting, own in by_setting.items():
        if len({row["seed"] for row in own}) < 2:
            continue
        spread = {key: _spread([row[key]["value"] for row in own]) for key in ("clean", "worst")}
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in own}))
        first = own[0]
        what = f"{first['method']} {_gone(first)} · {first['network']} · {first['structure']}"
        lines.append({**first, "setting": setting, "what": what, "spread": spread, "tried": seeds})
    return lines


def _spread(values: Sequence[float]) -> dict[str, Any]:
    middle, deviation = mean(values), stdev(values)
    text = f"{100 * middle:.1f} ± {100 * deviation:.1f} %"
    return {"mean": middle, "deviation": deviation, "text": text}


def _plots(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Latency and download against the worst case, a point for each valid row."""
    valid = [row for row in part["rows"] if row["valid"]]
    if not valid:
        return []
    places = part["places"]

    def points(key: str, words: Any, place: Any) -> list[dict[str, Any]]:
        return [
            {
                "run": row["run"],
                "rank": row["rank"],
                "cost": row[key],
                "worth": row["worst"],
                "place": place(row),
                "label": f"{row['method']} {row['gone']}, {row['network']}, seed {row['seed']}: "
                f"worst case {percent(row['worst']['value'])} {interval(row['worst'])}, "
                f"{words(row[key])}",
            }
            for row in valid
        ]

    times = points("p50_ms", lambda ms: f"{ms:.3g} ms", lambda row: places.index(row["place"]))
    sizes = points("compressed_bytes", size, lambda row: 0)
    return [
        {"axis": "milliseconds of one image (p50)", **scatter(times, lambda ms: f"{ms:g}")},
        {"axis": "download", **scatter(sizes, size)},
    ]
