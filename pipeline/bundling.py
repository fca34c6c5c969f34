"""The words `advprune bundle ...`; `pipeline.commands.bundle` does the work."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.arguments import LATEST, Json, Run

_MAKE = "make"
Key = Annotated[
    Path | None, typer.Option("--public-key", help="PEM file; the bundle must be signed with it.")
]
Release = Annotated[int, typer.Option("--release", min=0, help="Refuse a bundle older than that.")]


class MakeUnlessTold(TyperGroup):
    """`advprune bundle RUN` is `advprune bundle make RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if known else [_MAKE, *args])


bundle = typer.Typer(
    cls=MakeUnlessTold,
    help="Make the bundle of a run (`bundle RUN`), check one, or unpack one.",
    rich_markup_mode=None,
)


@bundle.command(_MAKE)
def make(
    run: Run = LATEST,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; `bundle` in the run if not given.")
    ] = None,
    release: Annotated[
        int, typer.Option(min=0, help="A number that grows, so that devices can refuse old ones.")
    ] = 0,
    sign: Annotated[
        Path | None, typer.Option(help="Private key in PEM: Ed25519, or ECDSA on P-256.")
    ] = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="Also write it as one compressed file beside it.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write all that a device needs to run the models of a run, and to check them."""
    from pipeline.commands.bundle import make

    return make(run, out, release, sign, archive, as_json)


@bundle.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Folder of a bundle, or an archive of one.")],
    public_key: Key = None,
    release: Release = 0,
    as_json: Json = False,
) -> int:
    """Trust a bundle: signature, files, digests, then what its models answer."""
    from pipeline.commands.bundle import verify

    return verify(path, public_key, release, as_json)


@bundle.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="Archive of a bundle.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    public_key: Key = None,
    release: Release = 0,
    as_json: Json = False,
) -> int:
    """Make the folder of a bundle, found to be what was packed, or nothing at all."""
    from pipeline.commands.bundle import unpack

    return unpack(archive, folder, public_key, release, as_json)
