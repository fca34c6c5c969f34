"""The word `advprune export`: its many options; `pipeline.commands.export` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import LATEST, Json, Run

_INT32 = 2**31 - 1  # as batches are counted in TensorRT and Triton


def export(
    run: Run = LATEST,
    *,
    target: Annotated[
        str, typer.Option(metavar="tensorrt|ort|openvino|triton", help="What runs there.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; export-TARGET in the run if not given.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="int8|fp32|fp16", help="Which of the run's graphs.")
    ] = "int8",
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=_INT32, help="Largest batch; 128 if not given.")
    ] = None,
    optimal_batch: Annotated[
        int | None, typer.Option(min=1, max=_INT32, help="Batch that an engine is tuned for.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="An engine for later TensorRT of its major."),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="An engine for any GPU from Ampere on.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write a folder for one kind of device: models, labels, digests, and what to check it by."""
    values = dict(locals())
    from pipeline.commands.export import export as run_export

    return run_export(values)
