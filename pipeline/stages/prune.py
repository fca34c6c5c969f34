"""Stage 3: the method chooses the masks."""

import hashlib
import inspect
from pathlib import Path

from torch import nn

from advprune.errors import BadData, Refused
from advprune.masking import bake, expand, hold
from advprune.masks import counts, kept_count, save_masks, sparsity_of
from advprune.method import PruningMethod, Task
from advprune.models import build
from advprune.stats import sparsity_for
from advprune.survey import survey
from advprune.train import Trained, fit, validate
from advprune.types import Masks
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


def stage(recipe: Recipe) -> Stage:
    objective = recipe.robust_objective(recipe.prune)
    method = recipe.pruning_method()
    granularity = getattr(method, "granularity", "weight")
    if recipe.compression is not None and granularity != "weight":
        raise Refused(
            f"--compression {recipe.compression:g} counts parameters, --granularity {granularity} "
            "counts groups of them; give --sparsity, the share of groups to remove"
        )

    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "adversarial")
        task = Task(objective, context.recipe.seed)
        aimed = aim(method, net, context.recipe.compression)
        trained = Trained({}, [])
        if aimed.searches:
            schedule = context.recipe.prune.schedule()
            trained = fit(net, images, task, schedule, context.observer, aimed)
        elif aimed.surveys:
            size = context.recipe.prune.batch_size
            trained = survey(net, images, task, size, context.observer, aimed)
        groups = aimed.finish(net, trained.state, task)
        check_target(groups, aimed.sparsity)
        # Weights and batch norm as the search left them, cut by the final masks.
        pruned = bake(net, build(architecture_of(context.recipe, images)))
        device = images.train.images.device
        pruned = pruned.to(device)
        masks = expand(groups, pruned)
        hold(pruned, {name: mask.to(device) for name, mask in masks.items()})
        write_network(context, pruned, images)
        write_history(context, trained)
        save_masks(masks, context.out / "masks.safetensors")
        kept = counts(masks).values()
        measured = validate(pruned, images.val, task)
        return {
            "asked": aimed.sparsity,
            "sparsity": sparsity_of(masks),
            "kept": sum(pair[0] for pair in kept),
            "total": sum(pair[1] for pair in kept),
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
    return Stage("prune", ("data", "adversarial"), config, run)


def aim(method: PruningMethod, net: nn.Module, compression: float | None) -> PruningMethod:
    """The method at the sparsity that gives this compression of `net`, where one is asked for."""
    if compression is None:
        return method
    return method.model_copy(update={"sparsity": sparsity_for(net, compression)})


def check_target(masks: Masks, sparsity: float) -> None:
    """Fail where the masks do not keep exactly what was asked, or leave a layer without weights.

    Raises:
        BadData: naming the counts, or the layer.
    """
    kept = {name: pair[0] for name, pair in counts(masks).items()}
    asked = kept_count(sum(mask.numel() for mask in masks.values()), sparsity)
    if sum(kept.values()) != asked:
        raise BadData(
            f"prune: the masks keep {sum(kept.values())} weights, sparsity {sparsity:g} asks for "
            f"{asked}; this is a defect of the method"
        )
    for name, count in kept.items():
        if count == 0:
            raise BadData(
                f"prune: the masks keep 0 of {masks[name].numel()} weights in {name}; "
                "lower the sparsity or choose another allocation"
            )
