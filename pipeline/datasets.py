"""The words `advprune data ...`; modules of `pipeline.commands` do the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import Json

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
    image_size: Annotated[int | None, typer.Option(help="Resize and crop to this side.")] = None,
    convert: Annotated[
        str | None,
        typer.Option(help="rgb: turn grey, CMYK, transparent and 16-bit images into RGB."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out damaged images, at most 0.1 %.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where downloaded data sets are.")] = None,
    as_json: Json = False,
) -> int:
    """Look at all images as `run` would; say what is wrong, what suits them, what to type next."""
    given = {
        "image_size": image_size,
        "convert": convert,
        "skip_bad": skip_bad or None,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    from pipeline.commands.data_check import data_check

    return data_check(images, {k: v for k, v in given.items() if v is not None}, as_json)
