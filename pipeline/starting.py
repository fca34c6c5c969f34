"""The word `advprune init`; `pipeline.commands.init` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import Convert, DataDir, ImageSize, Json, SkipBad, reading

Folder = Annotated[Path, typer.Argument(help="Of the project; made where there is none.")]


def init(
    folder: Folder = Path(),
    data: Annotated[str, typer.Option(help="FOLDER of images, or the name of a set.")] = "digits",
    image_size: ImageSize = None,
    convert: Convert = None,
    skip_bad: SkipBad = False,
    data_dir: DataDir = None,
    model: Annotated[
        str | None, typer.Option(help="A name of `advprune models`, or package.module:factory.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Pruning method; see `advprune methods`.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Share of weights removed.")
    ] = None,
    ci: Annotated[str, typer.Option(help="Workflow for github, gitlab or none.")] = "github",
    as_json: Json = False,
) -> int:
    """Begin a project of your own: check data and model, write a recipe and a workflow for CI."""
    from pipeline.commands.init import init

    given = {"model": model, "method": method, "sparsity": sparsity}
    choices = {key: value for key, value in given.items() if value is not None}
    chosen = reading(image_size, convert, skip_bad, data_dir)
    return init(folder, data, chosen, choices, ci, as_json)  # pyright: ignore[reportArgumentType]
