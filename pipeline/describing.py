"""The word `advprune methods`; `pipeline.commands` does the work."""

from typing import Annotated

import typer

from pipeline.arguments import Json, Method


def methods(
    name: Method = None,
    taxonomy: Annotated[
        bool,
        typer.Option(
            "--taxonomy", help="The Adversarial Pruning Benchmark's table of all methods."
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Show the pruning methods, the card of one, or the benchmark's table of them all."""
    if taxonomy:
        from pipeline.commands.taxonomy import taxonomy as of_the_benchmark

        return of_the_benchmark(name, as_json)
    from pipeline.commands.methods import card, methods

    return methods(as_json) if name is None else card(name, as_json)
