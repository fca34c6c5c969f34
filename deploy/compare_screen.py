"""A comparison of two runs on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.compare import change, headline
from deploy.outcome import percent
from deploy.words import interval, number, size

_COSTS = {
    "compressed_bytes": ("download", size),
    "bytes": ("file", size),
    "p50_ms": ("p50 ms", lambda ms: f"{ms:.3g}"),
    "p99_ms": ("p99 ms", lambda ms: f"{ms:.3g}"),
    "throughput": ("images/s", number),
}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print what differs, and the numbers of the engines that both runs have."""
    for letter, run in zip("AB", found["runs"], strict=True):
        valid = "" if run["valid"] else " · evaluation not valid"
        console.print(Text(f"{letter}  {run['title']} · {run['verdict']}{valid}"))
    console.print(Text(headline(found), style="bold"))
    for what in ("recipe", "environment"):
        rows = [[row["key"], _sourced(row, "a"), _sourced(row, "b")] for row in found[what]]
        if rows:
            console.print(_table((f"{what} differs", "A", "B"), rows, right=False))
    for engine in found["engines"]:
        rows = [
            [row["metric"], _share(row["a"]), _share(row["b"]), _change(row["test"])]
            for row in engine["metrics"]
        ]
        for cost in engine["costs"]:
            name, words = _COSTS[cost["what"]]
            rows.append([name, words(cost["a"]), words(cost["b"]), ""])
        console.print(_table((engine["name"], "A", "B", "from A to B [95 %], McNemar's p"), rows))
        for one in engine["protocol"][:3]:
            console.print(Text(f"  asked differently: {one}", style="dim"))
        if more := engine["protocol"][3:]:
            console.print(Text(f"  and {len(more)} more settings", style="dim"))
    if len(found["places"]) > 1:
        console.print(Text(f"times are of different places: {'; '.join(found['places'])}"))


def _sourced(row: Mapping[str, Any], side: str) -> str:
    source = row.get(f"source_{side}")
    return f"{row[side]} ({source})" if source else row[side]


def _share(value: Mapping[str, float] | None) -> str:
    return "–" if value is None else f"{percent(value['value'])} {interval(dict(value))}"


def _change(test: Mapping[str, Any] | None) -> str:
    return "not paired" if test is None else change(test)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        justify = "right" if right and position else "left"
        table.add_column(Text(column), justify=justify, no_wrap=right)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
