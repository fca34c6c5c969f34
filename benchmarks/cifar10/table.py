"""The table of docs/results-cifar10.md, from the rows that are complete.

.venv/bin/python benchmarks/cifar10/table.py build/cifar10
.venv/bin/python benchmarks/cifar10/table.py build/cifar10 --rehearsal
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from row import OUT, read_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from sections import write_section

DOCUMENT = Path(__file__).parents[2] / "docs" / "results-cifar10.md"
OPEN = 1.0  # percentage points, from which a difference has to be explained
_HEAD = (
    "row",
    "seed",
    "published clean / PGD-10 / AA",
    "float clean / PGD-10 / AA",
    "int8 clean / PGD-10 / AA",
    "difference",
    "zeros",
    "seconds",
    "pieces",
)
_MEASURES = {"clean": "clean", "pgd10": "PGD-10", "autoattack": "AA"}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line for each result, in the order of `rows.toml`.

    "difference" is float minus published, in percentage points; one beyond OPEN is bold.
    """
    order = list(read_rows()["rows"])
    lines = [f"| {' | '.join(_HEAD)} |", "|---|" + "--:|" * (len(_HEAD) - 1)]
    for result in sorted(results, key=lambda r: (order.index(r["row"]), r["recipe"]["seed"])):
        published = result["published"] or {}
        cells = [
            result["title"],
            str(result["recipe"]["seed"]),
            " / ".join(f"{published[m]:.2f}" if m in published else "–" for m in _MEASURES),
            *(_shares(result["engines"][engine]) for engine in ("fp32", "int8")),
            _difference(result["engines"]["fp32"], published),
            f"{100 * result['pipeline']['sparsity']:.2f} %",
            f"{sum(piece['seconds'] for piece in result['pieces']):,.0f}",
            str(len(result["pieces"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shares(engine: Mapping[str, Any]) -> str:
    """Per cent, with half the width of the 95 % interval of the AutoAttack accuracy."""
    values = " / ".join(f"{100 * engine[measure]['value']:.2f}" for measure in _MEASURES)
    last = engine["autoattack"]
    return f"{values} ± {50 * (last['high'] - last['low']):.2f}"


def _difference(engine: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    apart = []
    for measure, words in _MEASURES.items():
        if measure in published:
            points = 100 * engine[measure]["value"] - published[measure]
            text = f"{words} {points:+.2f}"
            apart.append(f"**{text}**" if abs(points) > OPEN else text)
    return ", ".join(apart) or "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=OUT)
    parser.add_argument("--rehearsal", action="store_true", help="those rows, into their section")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    results = [json.loads(path.read_bytes()) for path in sorted(options.folder.glob("*.json"))]
    chosen = [result for result in results if result["rehearsal"] == options.rehearsal]
    if not chosen:
        raise SystemExit(f"{options.folder}: no such rows; run benchmarks/cifar10/row.py NAME")
    text = table(chosen)
    write_section("rehearsal" if options.rehearsal else "rows", text, options.document)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
