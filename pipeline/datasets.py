"""The words `advprune data ...`; modules of `pipeline.commands` do the work."""

from typing import Annotated

import typer

from pipeline.arguments import Convert, DataDir, ImageSize, Json, SkipBad, reading

data = typer.Typer(
    help="List the data sets (`data`), or look at your own images (`data check FOLDER`).",
    rich_markup_mode=None,
)


@data.callback(invoke_without_command=True)
def names(context: typer.Context, as_json: Json = False) -> int:
    """List the data sets (`data`), or look at your own images (`data check FOLDER`)."""
    if context.invoked_subcommand:
        return 0
    from pipeline.commands.listing import data

    return data(as_json)


@data.command()
def check(
    images: Annotated[str, typer.Argument(help="FOLDER of images, or the name of a set.")],
    image_size: ImageSize = None,
    convert: Convert = None,
    skip_bad: SkipBad = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> int:
    """Look at all images as `run` would; say what is wrong, what suits them, what to type next."""
    from pipeline.commands.data_check import data_check

    return data_check(images, reading(image_size, convert, skip_bad, data_dir), as_json)
