"""The word `advprune gate`: its many options; `pipeline.commands.gate` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import LATEST, Json


def gate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="A finished run, or a verdict file.")
    ] = LATEST,
    baseline: Annotated[
        Path | None, typer.Option(help="Verdicts that were accepted last, to be held against.")
    ] = None,
    release: Annotated[
        Path | None, typer.Option(help="Those of the last release: small drops add up.")
    ] = None,
    float_: Annotated[
        Path | None, typer.Option("--float", help="The float engine's, for the ratio of a FILE.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="regress (if none is given), ship, floor or ratio; repeatable."),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Drop that nobody minds; regress 0.01, ship 0.02.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Worst-case accuracy to be held; adds the policy.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Share of the float accuracy to be held; adds the policy.")
    ] = None,
    all_metrics: Annotated[
        bool, typer.Option("--all-metrics", help="Clean and every attack decide as well.")
    ] = False,
    hard: Annotated[
        list[str] | None,
        typer.Option(help="size or latency: fail where it would only warn; repeatable."),
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(help="The baseline's engine, to be timed in turn with the run's.")
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Make this the baseline.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why the baseline changes.")] = None,
    accept_regression: Annotated[
        bool, typer.Option("--accept-regression", help="Though it is worse than the old one.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown here.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for gate.json, gate.md, junit.xml and metrics.txt."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare with a baseline, image by image; exit 0 pass, 10 fail, 11 open, 12 no match."""
    values = dict(locals())
    from pipeline.commands.gate import gate as run_gate

    return run_gate(values)
