"""The first stages of a small run, built one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from advprune.observer import Observer
from pipeline.plan import plan
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context
from pipeline.store import Store
from pipeline.view import View
from pipeline.watch import Watch

TRAINING = ("standard", "adversarial", "prune", "finetune", "quantize")


def with_settings(settings: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe of the defaults, without the preset that a command would begin with."""
    tree = (base or Recipe()).model_dump()
    for key, value in settings.items():
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return Recipe.model_validate(tree)


SMALL = with_settings(
    {
        "limit_train": 1024,
        "limit_test": 50,
        "attack_steps": 1,
        "precision": "fp32",  # whatever this processor multiplies
        **{f"{stage}.epochs": 3 if stage == "prune" else 1 for stage in TRAINING},
        **{f"{stage}.batch_size": 64 for stage in TRAINING},
    }
)


class Runner:
    """Builds the first stages of a recipe one after the other."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe, self.store = recipe, Store(root)
        self.stages = {stage.name: stage for stage in plan(recipe)}
        self.made: dict[str, Artifact] = {}

    def build(self, name: str, watch: Callable[..., Observer] = Watch) -> Artifact:
        view = View(name, Console(quiet=True))

        def context(out: Path) -> Context:
            return Context(self.recipe, self.made, out, watch(out, view))

        self.made[name] = self.store.build(self.stages[name], self.made, context, {})
        return self.made[name]
