"""Stage 3: the method chooses the masks."""

import hashlib
import inspect
from pathlib import Path

from advprune.data import as_float
from advprune.errors import Refused
from advprune.masking import bake, hold
from advprune.masks import counts, save_masks, sparsity_of
from advprune.method import Task
from advprune.models import build
from advprune.signal import demand_signal
from advprune.survey import survey
from advprune.train import Trained, fit, validate
from advprune.types import Masks
from advprune.units import Units
from pipeline.beginning import aimed_at
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import (
    architecture_of,
    images_of,
    network_of,
    settings,
    write_history,
    write_network,
)

_SHOWN = 64  # images, to a network that must not answer all of them alike


def stage(recipe: Recipe) -> Stage:
    objective = recipe.robust_objective(recipe.prune)
    method = recipe.pruning_method()
    granularity = getattr(method, "granularity", "weight")
    if recipe.compression is not None and granularity != "weight":
        raise Refused(
            f"--compression {recipe.compression:g} counts parameters, --granularity {granularity} "
            "counts something else; give --sparsity, the share of it to remove"
        )

    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "adversarial")
        task = Task(objective, context.recipe.seed, images.shape)
        aimed = aimed_at(context.recipe, net)
        trained = Trained({}, [])
        if aimed.searches:
            schedule = context.recipe.prune.schedule()
            trained = fit(net, images, task, schedule, context.observer, aimed)
        elif aimed.surveys:
            size = context.recipe.prune.batch_size
            trained = survey(net, images, task, size, context.observer, aimed)
        masks = aimed.finish(net, trained.state, task)
        # Weights and batch norm as the search left them, cut by the final masks.
        architecture = architecture_of(context, "adversarial")
        pruned = bake(net, build(architecture))
        units = aimed.units(pruned, task)
        if aimed.lands:
            units.check(masks, aimed.sparsity)
        device = images.val.images.device
        pruned = pruned.to(device)
        hold(pruned, {name: mask.to(device) for name, mask in masks.items()})
        demand_signal(pruned, as_float(images.val.first(_SHOWN).images), masks)
        write_network(context, pruned, architecture)
        write_history(context, trained)
        save_masks(masks, context.out / "masks.safetensors")
        kept = counts(masks).values()
        measured = validate(pruned, images.val, task)
        return {
            "asked": aimed.sparsity,
            "sparsity": sparsity_of(masks),
            "kept": sum(pair[0] for pair in kept),
            "total": sum(pair[1] for pair in kept),
            **(_channels(units, masks) if aimed.shrinks else {}),
            **{key: round(value, 6) for key, value in measured.items()},
        }

    source = Path(inspect.getfile(type(method))).read_bytes()
    config = {
        "method": recipe.method,
        "options": method.model_dump(),
        "compression": recipe.compression,
        "source": hashlib.sha256(source).hexdigest(),
    }
    full = settings(recipe, recipe.prune, objective)
    if method.searches:
        config |= full
    else:
        config |= {"seed": recipe.seed, "objective": full["objective"]}
    if method.surveys:
        # Surveys attack by the recipe's threat also where the objective is natural.
        threat = {"threat": objective.threat.to_dict(), "steps": objective.steps}
        config |= {"batch_size": recipe.prune.batch_size, "attack": threat}
    return Stage("prune", ("data", "adversarial"), config, run, version=3)


def _channels(units: Units, masks: Masks) -> Metrics:
    return {
        "channels_kept": sum(units.kept(masks).values()),
        "channels_total": sum(units.sizes.values()),
    }
