"""The cells of a grid: one checked recipe each, and what they have in common."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advprune.errors import Refused
from deploy.verdicts import canonical
from pipeline.plan import plan, run_name
from pipeline.recipe import Recipe
from pipeline.resolve import Sources, resolve, setting, to_toml
from pipeline.stage import Stage

# What all cells that differ only in how they prune have in common, and what takes long.
DENSE = ("data", "standard", "adversarial")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        chosen: the grid's keys, and this cell's values.
        toml: the whole recipe, as a file that runs again.
        run: the name of the run's folder.
        dense: equal for cells that begin from the same dense network.
    """

    chosen: Mapping[str, Any]
    recipe: Recipe
    toml: str
    run: str
    dense: str

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.chosen.items())


def axes(texts: Sequence[str], seeds: int | None) -> dict[str, list[Any]]:
    """`KEY=V1,V2` texts of --grid, and the seeds 0, 1, ...: key -> values.

    Raises:
        Refused: not so written, a key or a value twice, or no value.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key, words = key.strip(), [word.strip() for word in values.split(",")]
        if not equals or not key or not all(words):
            raise Refused(f"--grid {text!r}: expected KEY=VALUE,VALUE, as sparsity=0.9,0.99")
        if key in found:
            raise Refused(f"--grid {text!r}: {key} has values already; give them all at once")
        if len(set(words)) < len(words):
            raise Refused(f"--grid {text!r}: a value is there twice; leave one out")
        found[key] = [setting(word) for word in words]
    if seeds is not None:
        if "seed" in found:
            raise Refused(f"--seeds {seeds} and --grid seed=...: give one of them")
        if seeds < 1:
            raise Refused(f"--seeds {seeds}: how many, 1 or more")
        found["seed"] = list(range(seeds))
    if not found:
        raise Refused("a sweep has nothing to vary; give --grid KEY=VALUE,VALUE or --seeds N")
    return found


def cells(
    grid: Mapping[str, Sequence[Any]],
    flags: Mapping[str, Any],
    file: Path | None,
    settings: list[str],
    threads: int,
) -> list[Cell]:
    """Every combination, checked before anything runs.

    Args:
        threads: of a cell whose recipe does not say: its results depend on them.

    Raises:
        Refused: a combination is no recipe, or two of them are the same run; NotFound for data.
    """
    found: list[Cell] = []
    seen: dict[str, str] = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        title = " ".join(f"{key}={value}" for key, value in chosen.items())
        try:
            recipe, sources = resolve({**flags, **chosen}, file=file, settings=settings)
            if recipe.threads is None:
                given = {**flags, **chosen, "threads": threads}
                recipe, sources = resolve(given, file=file, settings=settings)
            stages = plan(recipe)
        except Refused as refusal:
            raise type(refusal)(f"cell {title}: {refusal}") from None
        cell = _cell(chosen, recipe, sources, stages)
        if cell.run in seen:
            raise Refused(
                f"cells {seen[cell.run]} and {title} are the same run; something that comes after "
                "the grid, such as --set, sets what it varies"
            )
        seen[cell.run] = title
        found.append(cell)
    return found


def _cell(chosen: dict[str, Any], recipe: Recipe, sources: Sources, stages: list[Stage]) -> Cell:
    begun = [[stage.name, stage.version, stage.config] for stage in stages if stage.name in DENSE]
    dense = hashlib.sha256(canonical(begun)).hexdigest()
    return Cell(chosen, recipe, to_toml(recipe, sources), run_name(recipe, stages), dense)
