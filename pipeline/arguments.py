"""Arguments that several commands share, as typer takes them."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import completion

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs and of their shared stages.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Method = Annotated[
    str | None, typer.Argument(help="A method, for its card.", autocompletion=completion.methods)
]
LATEST = Path("runs/latest")
