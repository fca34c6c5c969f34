"""`advprune methods --taxonomy`: the table of the Adversarial Pruning Benchmark, by our cards."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advprune.errors import Refused
from pipeline.apb.entries import COLUMNS, LEGEND
from pipeline.apb.table import ABSENT, DESCRIBED, Row, known, listed, others

TITLES = {
    "after": "Pruning after training",
    "before": "Pruning before training",
    "during": "Pruning during training",
}


@dataclass(frozen=True)
class Sheet:
    """One section as people read it: the cells of each row as they are shown, and the row."""

    title: str
    header: Sequence[str]
    lines: Sequence[tuple[list[str], Row]]


def taxonomy(name: str | None, as_json: bool) -> int:
    """All entries of the benchmark, and our methods that it does not list.

    Raises:
        Refused: one method was named, whose card says it all.
    """
    if name is not None:
        raise Refused(f"--taxonomy shows all methods; for the card of one: advprune methods {name}")
    cards = known()
    if as_json:
        sections, apart = listed(cards), others(cards)
        document = {
            "sections": {name: [asdict(row) for row in rows] for name, rows in sections.items()},
            "others": {name: [asdict(row) for row in rows] for name, rows in apart.items()},
            "legend": LEGEND,
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = Console(markup=False, highlight=False)
    sheets, apart, notes = contents()
    _print(console, sheets)
    console.print("\nNot in the benchmark", style="bold")
    _print(console, apart)
    console.print()
    for note in notes:
        console.print(note)
    console.print("\n" + "; ".join(f"{short} {long}" for short, long in LEGEND.items()) + ".")
    return 0


def contents() -> tuple[list[Sheet], list[Sheet], list[str]]:
    """The benchmark's sections, ours that it does not list, and the footnotes of the marks."""
    cards, notes = known(), list[str]()
    sheets = [_sheet(section, rows, notes) for section, rows in listed(cards).items()]
    apart = [_sheet(section, rows, notes) for section, rows in others(cards).items() if rows]
    return sheets, apart, notes


def _sheet(section: str, rows: Iterable[Row], notes: list[str]) -> Sheet:
    header = ["entry", "ours", *COLUMNS[section].values()]
    return Sheet(TITLES[section], header, [(_line(section, row, notes), row) for row in rows])


def _line(section: str, row: Row, notes: list[str]) -> list[str]:
    """The cells of a row; each that differs gets a mark, and `notes` what it means."""
    state = {ABSENT: ABSENT, DESCRIBED: f"{row.method} ({DESCRIBED})"}
    cells = {"entry": row.entry, "ours": state.get(row.state, row.method), **row.cells}
    headings = {"entry": "name", "section": "section", **COLUMNS[section]}
    for found in row.differences:
        number = len(notes) + 1
        cells["entry" if found.axis == "section" else found.axis] += f" [{number}]"
        notes.append(f"[{number}] {row.entry}, {headings[found.axis]}: {found.told()}.")
    return list(cells.values())


def _print(console: Console, sheets: Iterable[Sheet]) -> None:
    for sheet in sheets:
        table = Table(title=f"\n{sheet.title}", title_justify="left", box=None, pad_edge=False)
        for column in sheet.header:
            table.add_column(column, overflow="fold")
        for line, _ in sheet.lines:
            table.add_row(*map(Text, line))
        console.print(table)
