"""Arguments that several commands share, as typer takes them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import completion

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs and of their shared stages.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Method = Annotated[
    str | None, typer.Argument(help="A method, for its card.", autocompletion=completion.methods)
]
ImageSize = Annotated[int | None, typer.Option(help="Resize and crop to this side.")]
Convert = Annotated[
    str | None, typer.Option(help="rgb: turn grey, CMYK, transparent and 16-bit images into RGB.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out damaged images, at most 0.1 %.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where downloaded data sets are.")]
LATEST = Path("runs/latest")


def reading(
    image_size: int | None, convert: str | None, skip_bad: bool, data_dir: Path | None
) -> dict[str, Any]:
    """What was chosen of how images are read, by its name in a recipe."""
    chosen = {
        "image_size": image_size,
        "convert": convert,
        "skip_bad": skip_bad or None,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    return {key: value for key, value in chosen.items() if value is not None}
