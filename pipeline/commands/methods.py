"""`advprune methods` prints the taxonomy of the pruning methods, `advprune methods NAME` a card."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advprune import undetermined
from advprune.card import LEGEND, Card
from advprune.method import PruningMethod, get, names
from pipeline.options import choices_of
from pipeline.resolve import method_settings, presets

# Attributes of the card, and the column of the taxonomy that shows each.
AXES = {
    "pipeline": "when",
    "pretraining": "before",
    "finetuning": "after",
    "shots": "shots",
    "structure": "US/S",
    "locality": "L/G",
    "criterion": "criterion",
}
_SHOWN = ("method", "year", *AXES)


def methods(as_json: bool) -> int:
    """The row of every method in the taxonomy of the Adversarial Pruning Benchmark."""
    rows = taxonomy()
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    table = Table(title="methods", title_justify="left", box=None, pad_edge=False)
    for column in rows[0]:
        if column in _SHOWN:
            table.add_column(AXES.get(column, column), overflow="fold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in _SHOWN))
    console = Console()
    console.print(table)
    console.print("\n" + "; ".join(f"{short} {long}" for short, long in LEGEND.items()) + ".")
    if described := undetermined.names():
        open_ones = "Described, but not built, as what is public of them leaves parts open: "
        console.print(f"{open_ones}{', '.join(described)}.")
    console.print("More on one of them: advprune methods NAME")
    return 0


def card(name: str, as_json: bool) -> int:
    """Print the card of one method."""
    found = about(name)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _print(found)
    return 0


def taxonomy() -> list[dict[str, Any]]:
    """The row of every method."""
    return [_row(name, get(name).card) for name in names()]


def about(name: str) -> dict[str, Any]:
    """Everything about one method; of one that is only described, what is `missing`.

    Raises:
        Refused: with the nearest names where there is none.
    """
    if name in undetermined.names():
        return {**_told(name, undetermined.card(name)), "options": [], "presets": {}}
    method = get(name)
    return {
        **_told(name, method.card),
        "options": _options(method),
        "presets": {preset: method_settings(preset, name) for preset in presets()},
    }


def _told(name: str, card: Card) -> dict[str, Any]:
    return {
        **_row(name, card),
        "paper": card.paper,
        "equations": list(card.equations),
        "departures": list(card.departures),
        "missing": list(card.missing),
    }


def _row(name: str, card: Card) -> dict[str, Any]:
    return {
        "method": name,
        "title": card.title,
        "year": card.year,
        **{axis: getattr(card, axis) for axis in AXES},
        "benchmark": card.entry or None,
        "what it does": card.summary,
    }


def _options(method: type[PruningMethod]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "default": info.default,
            "description": f"{info.description}{choices_of(info.annotation)}",
        }
        for name, info in method.model_fields.items()
    ]


def _print(about: dict[str, Any]) -> None:
    # Cards hold E[pi] and the like: brackets are theirs, not markup.
    console = Console(highlight=False, markup=False)

    def section(title: str, rows: list[tuple[str, ...]]) -> None:
        if rows:
            console.print(f"\n{title}", style="bold")
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)

    console.print(Text.assemble((about["title"], "bold"), f": {about['what it does']}"))
    console.print(about["paper"])
    console.print("\nTaxonomy", style="bold")
    for axis in AXES:
        console.print(f"  {axis:12} {about[axis]}{spelled_out(about[axis])}")
    console.print(f"  {'benchmark':12} {about['benchmark'] or 'not listed'}")
    computes = "What is known" if about["missing"] else "Computes"
    section(computes, [(f"{n}.", line) for n, line in enumerate(about["equations"], start=1)])
    missing = [("-", line) for line in about["missing"]]
    section("Not built, because its public description leaves open", missing)
    section(
        "Options",
        [
            ("--" + option["name"].replace("_", "-"), str(option["default"]), option["description"])
            for option in about["options"]
        ],
    )
    section(
        "Settings by preset",
        [
            (preset, ", ".join(f"{k}={v}" for k, v in values.items()) or "as all methods")
            for preset, values in about["presets"].items()
        ],
    )
    departures = [("-", line) for line in about["departures"]]
    section("Departures from the paper and the released code", departures)


def spelled_out(value: str) -> str:
    """What the abbreviations in a value stand for."""
    words = value.replace(",", " ").replace("+", " ").split()
    known = [LEGEND[word] for word in words if word in LEGEND]
    return f" ({', '.join(known)})" if known else ""
