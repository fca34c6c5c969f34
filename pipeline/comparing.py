"""The words `advprune board` and `advprune compare`: many runs side by side, and two in detail."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import Json

Open = Annotated[bool, typer.Option("--open", help="Show the page in a browser.")]


def board(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or runs.", show_default="runs")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; RUNS/board.html if not given.")
    ] = None,
    opened: Open = False,
    as_json: Json = False,
) -> int:
    """Put all finished runs on one page: ranked under each protocol, drawn against their cost."""
    from pipeline.commands.board import board

    return board(runs or [Path("runs")], out, opened, as_json)


def compare(
    a: Annotated[Path, typer.Argument(help="A finished run.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; compare.html beside the second run if not given.")
    ] = None,
    opened: Open = False,
    as_json: Json = False,
) -> int:
    """Compare two runs: settings, machine, size, latency, and robustness image by image."""
    from pipeline.commands.compare import compare

    return compare(a, b, out, opened, as_json)
