"""Stage 3: the method chooses the masks."""

import hashlib
import inspect
from pathlib import Path

from advprune.errors import BadData
from advprune.masking import bake, hold
from advprune.masks import counts, kept_count, save_masks, sparsity_of
from advprune.method import Task
from advprune.models import build
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
    objective = recipe.robust_objective()
    method = recipe.pruning_method()

    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "adversarial")
        task = Task(objective, context.recipe.seed)
        trained = Trained({}, [])
        if method.learns:
            schedule = context.recipe.prune.schedule()
            trained = fit(net, images, task, schedule, context.observer, method)
        masks = method.finish(net, trained.state, task)
        check_target(masks, method.sparsity)
        # Weights and batch norm as the search left them, cut by the final masks.
        pruned = bake(net, build(architecture_of(context.recipe, images)))
        pruned = pruned.to(images.train.images.device)
        hold(pruned, {name: mask.to(images.train.images.device) for name, mask in masks.items()})
        write_network(context, pruned, images)
        write_history(context, trained)
        save_masks(masks, context.out / "masks.safetensors")
        kept = counts(masks).values()
        measured = validate(pruned, images.val, task)
        return {
            "sparsity": sparsity_of(masks),
            "kept": sum(pair[0] for pair in kept),
            "total": sum(pair[1] for pair in kept),
            **{key: round(value, 6) for key, value in measured.items()},
        }

    source = Path(inspect.getfile(type(method))).read_bytes()
    config = {
        "method": recipe.method,
        "options": method.model_dump(),
        "source": hashlib.sha256(source).hexdigest(),
    }
    if method.learns:
        config |= settings(recipe, recipe.prune, objective)
    else:
        config |= {
            "seed": recipe.seed,
            "objective": settings(recipe, recipe.prune, objective)["objective"],
        }
    return Stage("prune", ("data", "adversarial"), config, run)


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
