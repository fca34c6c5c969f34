"""The words of `advprune models`."""

from typing import Annotated

import typer

from pipeline.arguments import Json


def models(
    name: Annotated[str | None, typer.Argument(help="A model, for what of it is prunable.")] = None,
    image_size: Annotated[int, typer.Option(help="Height and width of its images.")] = 32,
    channels: Annotated[int, typer.Option(help="Of its images: 1 grey, 3 colours.")] = 3,
    classes: Annotated[int, typer.Option(help="How many it tells apart.")] = 10,
    granularity: Annotated[str, typer.Option(help="weight, filter, channel or 2:4.")] = "weight",
    as_json: Json = False,
) -> int:
    """List the models, or what of one can be pruned, layer by layer."""
    if name is None:
        from pipeline.commands.listing import models

        return models(as_json)
    from pipeline.commands.models import model

    return model(name, image_size, channels, classes, granularity, as_json)
