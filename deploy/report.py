"""The report of a run: one dictionary, shown as Markdown and on a terminal; see `report_page`.

Every number in the report belongs to a file that ships. Shares are fractions in [0, 1]; intervals
are 95 % Clopper-Pearson.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.errors import DeployError
from deploy.outcome import code, percent
from deploy.words import count, interval, number, size

SCHEMA = 2
_PARTS = ("title", "verdict", "command", "recipe", "environment", "stages", "sparsity", "engines")
_PARTS += ("transfer", "curve", "parity", "health", "threat", "images", "gallery")
_PARTS += ("caveats", "notes")
_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
MEANING = {
    "PASS": "the {} file may ship",
    "FAIL": "the {} file must not ship",
    "INCONCLUSIVE": "whether the {} file may ship is not decided",
}


def render_markdown(report: dict[str, Any]) -> str:
    """A summary for a pull request or a README, and how to have the run again.

    Raises:
        DeployError: 65, the report lacks something or has another schema.
    """
    measured = measured_markdown(report)
    environment = report["environment"].items()
    made_with = [f"{_plain(key)} {code(str(value))}" for key, value in environment]
    return (
        f"{measured}\nReproduce with {code(report['command'])}, from where it was "
        f"started, in the same bits with {', '.join(made_with)}.\n"
    )


def measured_markdown(report: dict[str, Any]) -> str:
    """The summary alone: nothing of it is about the machine that made it.

    Raises:
        DeployError: 65, the report lacks something or has another schema.
    """
    checked(report)
    engines = report["engines"]
    lines = [f"# {_plain(report['title'])}", "", f"**{report['verdict']['status']}**", ""]
    lines += [f"- {_plain(line)}" for line in report["verdict"]["lines"]]
    lines += ["", " · ".join([removed(report), *smaller(report)]), ""]
    lines += _rows(
        ["engine", "size", "download", "clean", "worst [95 % CI]", "p50 ms", "img/s"],
        [[code(row[0]), *row[1:]] for row in _engine_rows(report)],
    )
    lines += [""]
    lines += _rows(
        ["robust accuracy under", *(code(engine["name"]) for engine in engines)],
        [[code(row[0]), *row[1:]] for row in _attack_rows(report)],
    )
    lines += ["", f"{number(report['images'])} images; {health_in_words(report)}."]
    lines += ["", *(f"- {_plain(note)}" for note in [*report["caveats"], *report["notes"]])]
    return "\n".join(lines).rstrip() + "\n"


def terminal(report: dict[str, Any], console: Console) -> None:
    """Print the engines, the attacks and the verdict.

    Raises:
        DeployError: 65, the report lacks something or has another schema.
    """
    checked(report)
    console.print(Text(report["title"], style="bold"))
    console.print(Text(" · ".join([removed(report), *smaller(report)]), style="dim"))
    columns = ["engine", "size", "download", "clean", "worst [95 % CI]", "p50 ms", "img/s"]
    console.print(_table(columns, _engine_rows(report)))
    names = [engine["name"] for engine in report["engines"]]
    console.print(_table(["robust under", *names], _attack_rows(report)))
    verdict = report["verdict"]
    console.print(Text(verdict["status"], style=f"bold {_COLOURS[verdict['status']]}"))
    for line in (*verdict["lines"], *report["caveats"], *report["notes"]):
        console.print(Text(f"  {line}"))


def removed(report: dict[str, Any]) -> str:
    """Sparsity in words that cannot be read the wrong way round: what is gone and what is left."""
    kept, total = report["sparsity"]["kept"], report["sparsity"]["total"]
    share = kept / total
    factor = f"{number(total / kept)}×" if kept else "nothing left"
    return f"{_short(1 - share)} removed · {_short(share)} kept · {factor}"


def smaller(report: dict[str, Any]) -> list[str]:
    """What removing channels made of the network; nothing where none were removed."""
    structure = report.get("structure")
    if not structure:
        return []
    groups = structure["groups"]
    before, after = (sum(group[key] for group in groups) for key in ("before", "after"))
    dense, engine = structure["dense"], ships(report)
    once = dense["p50_ms"] / engine["latency"]["p50_ms"]
    whole = engine["latency"]["throughput"] / dense["throughput"]
    return [
        f"{number(before)} → {number(after)} channels",
        "{} → {} parameters".format(*map(number, structure["parameters"])),
        "{} → {} MACs".format(*map(count, structure["macs"])),
        f"{engine['name']} {number(once)}× as fast as dense fp32 on one image, {number(whole)}× in "
        f"batches of {dense['throughput_batch']}",
    ]


def ships(report: dict[str, Any]) -> dict[str, Any]:
    """The engine that the headline is about: the int8 one, else the first."""
    engines = report["engines"]
    return next((engine for engine in engines if engine["precision"] == "int8"), engines[0])


def health_in_words(report: dict[str, Any]) -> str:
    """How many checks of the evaluation found what: "24 of 25 checks of the evaluation OK"."""
    counts = Counter(check["status"] for check in report["health"])
    odd = [f", {counts[status]} {status}" for status in ("SUSPECT", "INVALID") if counts[status]]
    return f"{counts['OK']} of {counts.total()} checks of the evaluation OK{''.join(odd)}"


def check_schema(report: Mapping[str, Any], whose: str = "report") -> None:
    """Raises DeployError 65 where a report was made by another release."""
    if (found := report.get("schema")) != SCHEMA:
        said = f"schema is {found!r}, and {SCHEMA} is known"
        raise DeployError(f"{whose}: {said}; run the pipeline again", 65)


def checked(report: dict[str, Any]) -> None:
    """Raises DeployError 65 where a report lacks a part or was made by another release."""
    check_schema(report)
    if missing := [part for part in _PARTS if part not in report]:
        raise DeployError(f"report: {', '.join(missing)} missing; run the pipeline again", 65)
    if not report["engines"]:
        raise DeployError("report: there are no engines; run the pipeline again", 65)


def _short(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def _engine_rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            engine["name"],
            size(engine["bytes"]),
            size(engine["compressed_bytes"]),
            percent(engine["clean"]["value"]),
            f"{percent(engine['worst']['value'])} {interval(engine['worst'])}",
            f"{engine['latency']['p50_ms']:.2f}",
            number(engine["latency"]["throughput"]),
        ]
        for engine in report["engines"]
    ]


def attacks_of(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for engine in report["engines"] for name in engine["attacks"]))


def _attack_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each attack: its accuracy on every engine, "–" where an engine was not attacked."""
    engines = report["engines"]
    return [
        [
            name,
            *(
                f"{percent(engine['attacks'][name]['value'])} {interval(engine['attacks'][name])}"
                if name in engine["attacks"]
                else "–"
                for engine in engines
            ),
        ]
        for name in attacks_of(report)
    ]


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rows(columns: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *("--:" for _ in columns[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#@" else letter for letter in text)
