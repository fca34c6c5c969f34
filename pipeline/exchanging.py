"""The words `advprune apb ...`; `pipeline.commands.apb` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments import LATEST, Json, Run

apb = typer.Typer(
    help="Exchange networks with the Adversarial Pruning Benchmark.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@apb.command("import")
def take(
    file: Annotated[Path, typer.Argument(help="A file of weights: .safetensors, .pt or .pth.")],
    method: Annotated[str, typer.Option(help="Whose it is, e.g. RADMM; or base.")],
    out: Annotated[Path, typer.Option(help="Folder to make, of a checkpoint of ours.")],
    sha256: Annotated[
        str | None, typer.Option(help="What the file's digest must be; a pickle needs one.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of pixels in [0, 1], where it has none.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Beside --mean.")] = None,
    as_json: Json = False,
) -> int:
    """Turn a checkpoint of the benchmark into one of ours, for `advprune attack` and others."""
    from pipeline.commands.apb import take

    return take(file, method, out, sha256, (mean, std), as_json)


@apb.command("export")
def give(
    run: Run = LATEST,
    *,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    as_json: Json = False,
) -> int:
    """Write the float network of a run as the benchmark names, loads and lists one."""
    from pipeline.commands.apb import give

    return give(run, out, as_json)
