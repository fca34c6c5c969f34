"""Tables of pages, between marks that name them: written by commands, never by hand."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"


# Measures in so many rounds, or hardly at all where it is quick, and tells it as Markdown.
Table = Callable[[int, bool], str]


def write_tables(
    group: str, tables: Mapping[str, Table], page: Path, rounds: int, words: Sequence[str] | None
) -> None:
    """The command line of a benchmark that makes several tables of one page.

    Args:
        tables: by name, each written as the section `GROUP-NAME`.
        rounds: of each measurement where none are asked for.
        words: of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(description=f"The tables of {page.name} that are {group}'s.")
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(tables)}; else all")
    parser.add_argument("--quick", action="store_true", help="hardly any work: only to try it out")
    parser.add_argument("--rounds", type=int, default=rounds)
    options = parser.parse_args(words)
    if unknown := set(options.what) - set(tables):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    torch.set_num_threads(1)
    for name in options.what or tables:
        text = tables[name](options.rounds, options.quick)
        sys.stdout.write(f"{text}\n\n")
        if not options.quick:
            write_section(f"{group}-{name}", text, page)


def load() -> str:
    """How much else this machine had to do."""
    return f"{os.cpu_count()} cores, a load of {os.getloadavg()[0]:.1f} at the end"


def write_section(name: str, text: str, document: Path | None = None) -> None:
    """Put `text` between the marks of a section of a document, by default of the results."""
    document = document or RESULTS
    before, _, after = _parts(name, document)
    start, end = _marks(name)
    document.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}")


def read_section(name: str, document: Path | None = None) -> str:
    """What is between the marks of a section of a document, by default of the results."""
    return _parts(name, document or RESULTS)[1].strip()


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _parts(name: str, document: Path) -> tuple[str, str, str]:
    """A document before, inside and after a section, which it must have."""
    start, end = _marks(name)
    before, _, rest = document.read_text().partition(start)
    inside, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document}: has no section {name!r}; add the lines {start} and {end}")
    return before, inside, after
