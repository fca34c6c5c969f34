"""A page for each method, built or described, from its card and options, and their taxonomy."""

from typing import Any

from advprune import undetermined
from advprune.card import LEGEND
from pages.markdown import MADE, code, plain, sentence, table, value_of
from pipeline.apb.entries import LEGEND as BENCHMARK
from pipeline.commands.methods import AXES, about, spelled_out, taxonomy
from pipeline.commands.taxonomy import Sheet, contents

_TAXONOMY = """# Pruning methods

Where each stands in the taxonomy of the Adversarial Pruning Benchmark. All of them prune to exactly
the sparsity that is asked, so that they can be compared; what they do under one budget is in
[results.md](../results.md). `advprune methods` prints this table, `advprune methods NAME` a card.
To add one is to add [one file](../add-a-method.md).

"""

_OPEN = """## Described, but not built

What is public of these methods leaves parts open, and whatever would fill them would be an
invention under another's name.

"""

_LISTED = """## In the benchmark

All entries of the benchmark's own table, in its abbreviations, and which of ours implements each.
What is shown is what our card says, and where there is none yet, what the benchmark's JSON says. A
number marks where our card, its JSON and its README are not all the same, for the reason below.
`advprune methods --taxonomy` prints this.

"""


def pages() -> dict[str, str]:
    """File name without its ending -> text."""
    rows = taxonomy()
    built = {row["method"]: _page(row["method"]) for row in rows}
    described = {name: _described(name) for name in undetermined.names()}
    return {"README": _overview(rows), **built, **described}


def _overview(rows: list[dict[str, Any]]) -> str:
    header = ["method", "year", *AXES.values(), "what it does"]
    cells = [
        [
            f"[{row['method']}]({row['method']}.md)",
            str(row["year"]),
            *(plain(row[axis]) for axis in AXES),
            plain(row["what it does"]),
        ]
        for row in rows
    ]
    legend = "".join(f"- **{short}** {long}\n" for short, long in LEGEND.items())
    columns = (
        "*When* is the place of pruning in adversarial training; *before* and *after* are how the "
        "paper trains\naround it.\n"
    )
    return (
        f"{MADE}\n\n{_TAXONOMY}{table(header, cells)}\n{columns}\n{legend}{_not_built()}{_listed()}"
    )


def _listed() -> str:
    """The benchmark's table, and below it what the benchmark does not list."""
    sheets, apart, notes = contents()
    more = {short: long for short, long in BENCHMARK.items() if short not in LEGEND}
    return "\n".join(
        [
            f"\n{_LISTED}{_sheets(sheets)}",
            "".join(f"- {plain(note)}\n" for note in notes),
            f"Besides the abbreviations above: {'; '.join(f'{k} {v}' for k, v in more.items())}.\n",
            f"### Not in the benchmark\n\n{_sheets(apart, '####')}",
        ]
    )


def _sheets(sheets: list[Sheet], level: str = "###") -> str:
    return "\n".join(f"{level} {sheet.title}\n\n{_sheet(sheet)}" for sheet in sheets)


def _sheet(sheet: Sheet) -> str:
    rows = [
        [
            plain(name) if " " in row.link else f"[{plain(name)}]({row.link})",
            f"[{ours}]({row.method}.md)" if row.method else ours,
            *map(plain, rest),
        ]
        for (name, ours, *rest), row in sheet.lines
    ]
    return table(sheet.header, rows)


def _not_built() -> str:
    """The methods that are only described, apart."""
    rows = [
        [
            f"[{name}]({name}.md)",
            str(card.year),
            plain(card.summary),
            plain("; ".join(card.missing)),
        ]
        for name, card in ((name, undetermined.card(name)) for name in undetermined.names())
    ]
    if not rows:
        return ""
    header = ["method", "year", "what it does", "what is left open"]
    return f"\n{_OPEN}{table(header, rows)}"


def _page(name: str) -> str:
    card = about(name)
    return "\n".join(
        [
            f"{MADE}\n",
            f"# {plain(card['title'])}\n",
            f"`{name}` {plain(card['what it does'])}.\n",
            f"{sentence(card['paper'])}\n",
            f"    advprune run --method {name} --sparsity {_typical(card)}\n",
            "## What it computes\n",
            "".join(f"{n}. {sentence(line)}\n" for n, line in enumerate(card["equations"], 1)),
            "## Options\n",
            _options(card["options"]),
            *_presets(card["presets"]),
            *_departures(card["departures"]),
            "## In the taxonomy\n",
            _axes(card),
            "[All methods](README.md) · [results](../results.md) · "
            "[the stage that prunes](../stages/prune.md)\n",
        ]
    )


def _described(name: str) -> str:
    card = about(name)
    return "\n".join(
        [
            f"{MADE}\n",
            f"# {plain(card['title'])}\n",
            f"Described, but not built: it {plain(card['what it does'])}.\n",
            f"{sentence(card['paper'])}\n",
            "## What is known\n",
            "".join(f"{n}. {sentence(line)}\n" for n, line in enumerate(card["equations"], 1)),
            "## What its public description leaves open\n",
            "".join(f"- {sentence(line)}\n" for line in card["missing"]),
            "## In the taxonomy\n",
            _axes(card),
            "[All methods](README.md)\n",
        ]
    )


def _typical(card: dict[str, Any]) -> str:
    """A share that its kind stands: whole channels are fewer than weights."""
    return "0.9" if "US" in card["structure"] else "0.5"


def _options(options: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"`--{option['name'].replace('_', '-')}`",
            code(option["default"]),
            plain(option["description"]),
        ]
        for option in options
    ]
    return table(["option", "default", "what it is"], rows)


def _presets(presets: dict[str, dict[str, Any]]) -> list[str]:
    own = [(preset, values) for preset, values in presets.items() if values]
    if not own:
        return []
    rows = [
        [preset, ", ".join(f"`{key}={value_of(value)}`" for key, value in values.items())]
        for preset, values in own
    ]
    others = ", ".join(f"`{preset}`" for preset, values in presets.items() if not values)
    treats = f"; {others} treat all methods alike" if others else ""
    return [
        "## As its paper does\n",
        f"What a preset sets for this method alone{treats}.\n",
        table(["preset", "settings"], rows),
    ]


def _departures(lines: list[str]) -> list[str]:
    if not lines:
        return []
    items = "".join(f"- {sentence(line)}\n" for line in lines)
    return ["## Departures from the paper and the released code\n", items]


def _axes(card: dict[str, Any]) -> str:
    rows = [[axis, plain(f"{card[axis]}{spelled_out(card[axis])}")] for axis in AXES]
    listed = plain(card["benchmark"]) if card["benchmark"] else "not listed"
    return table(["", card["method"]], [*rows, ["in the benchmark as", listed]])
