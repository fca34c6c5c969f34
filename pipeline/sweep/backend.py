"""Where the cells of a sweep run: what every engine is told, and what it must do."""

import importlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from advprune.errors import Refused, Unavailable
from pipeline.sweep.cell import Ended
from pipeline.sweep.grid import Cell
from pipeline.wording import unknown

RECIPES = "recipes"  # folder of a sweep
# Name -> its module below this package, and its class there.
_BACKENDS = {
    "local": ("local", "Local"),
    "ray": ("on_ray", "OnRay"),
    "slurm": ("on_slurm", "OnSlurm"),
}


@dataclass(frozen=True)
class Terms:
    """What the cells of a sweep have in common.

    Attributes:
        folder: of the sweep.
        words: of `advprune run`, beside the recipe.
        workers: cells at a time on one machine.
        gpus: that each cell takes; None leaves it to the backend.
        nproc: ranks of each cell, each with the recipe's threads.
        slurm: what submitit is told besides.
    """

    folder: Path
    words: tuple[str, ...]
    workers: int = 1
    gpus: float | None = None
    nproc: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def cores(self, cell: Cell) -> int:
        """How many a cell keeps busy."""
        return (cell.recipe.threads or 1) * self.nproc

    def recipe(self, cell: Cell) -> Path:
        """The file of a cell's recipe; on another machine it may have to be made."""
        return self.folder / RECIPES / f"{cell.run}.toml"


class Backend(Protocol):
    """An engine, from when it is entered until it is left.

    What is refused is refused before: by the constructor, or when it is entered. Left by an
    exception it begins no other cell, and asks all at work to stop where nothing is lost.
    """

    def __init__(self, terms: Terms) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *broken_off: object) -> None: ...

    def submit(self, cell: Cell) -> Future[Ended]:
        """Begin a cell when there is room for it; one whose machine died has ended, too."""
        ...


def backend(name: str, terms: Terms) -> Backend:
    """The engine of this name.

    Raises:
        Refused: there is none, or the terms are not for it.
        Unavailable: its package or its programs are missing.
    """
    if name not in _BACKENDS:
        raise Refused(unknown("--backend", name, list(_BACKENDS)))
    if terms.slurm and name != "slurm":
        raise Refused(f"--slurm with --backend {name}: is for --backend slurm; leave it out")
    if terms.gpus is not None and name == "local":
        raise Refused(
            f"--gpus-per-cell {terms.gpus:g} with --backend local: all cells see the same GPUs; "
            "leave it out, or give --backend ray"
        )
    module, engine = _BACKENDS[name]
    try:
        made: type[Backend] = getattr(importlib.import_module(f"pipeline.sweep.{module}"), engine)
    except ImportError as error:
        raise Unavailable(
            f"--backend {name}: a package is missing ({error}); type: "
            f"pip install 'advprune[{name}]'"
        ) from error
    return made(terms)
