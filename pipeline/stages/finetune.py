"""Stage 4: robust fine-tuning of what is left.

Removed weights stay exactly zero, their masks held. Removed channels are cut out first, which is
the same function and a fraction of the work. Under the objective kd the dense robust network is the
teacher, and the stage depends on it.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from advprune.distillation import taught_by
from advprune.errors import BadData
from advprune.masking import hold
from advprune.masks import load_masks
from advprune.stats import layer_counts
from advprune.types import Masks
from export.compact import Compact, check_same, compact
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import (
    architecture_of,
    images_of,
    last_metrics,
    network_of,
    settings,
    train,
)

STRUCTURE = "structure.json"


def stage(recipe: Recipe) -> Stage:
    objective = recipe.robust_objective(recipe.finetune)
    shrinks = recipe.pruning_method().shrinks
    taught = objective.name == "kd"

    def run(context: Context) -> Metrics:
        masks = load_masks(context["prune"].file("masks.safetensors"))
        net = network_of(context, "prune")
        small = _cut(context, net) if shrinks else None
        architecture = architecture_of(context, "prune")
        if small is None:
            device = next(net.parameters()).device
            hold(net, {name: mask.to(device) for name, mask in masks.items()})
        else:
            net, architecture = small.net, replace(architecture, widths=small.widths)
        teacher = network_of(context, "adversarial") if taught else None
        learns = taught_by(objective, teacher) if teacher else objective
        net, trained = train(context, net, architecture, context.recipe.finetune, learns)
        kept = _count(net, masks)
        return {
            "sparsity": 1.0 - kept / sum(mask.numel() for mask in masks.values()),
            **last_metrics(trained),
        }

    config = settings(recipe, recipe.finetune, objective)
    needs = ("data", "prune", "adversarial") if taught else ("data", "prune")
    return Stage("finetune", needs, config, run, version=3)


def _cut(context: Context, net: nn.Module) -> Compact:
    """The network without its dead channels, found to be the same; writes what became of it."""
    images = images_of(context)
    small = compact(net, images.shape)
    gap = check_same(net, small.net, images.val.images)
    structure: dict[str, Any] = {
        "groups": [{"name": n, "before": b, "after": a} for n, b, a in small.groups],
        "parameters": list(small.parameters),
        "macs": list(small.macs),
        "logit_gap": gap,
    }
    write_json(context.out / STRUCTURE, structure)
    return small


def _count(net: nn.Module, masks: Masks) -> int:
    """How many weights are not zero.

    Raises:
        BadData: a layer has more than its mask keeps.
    """
    total = 0
    for name, (nonzero, _) in layer_counts(net).items():
        if nonzero > int(masks[name].sum()):
            raise BadData(f"finetune: {name} has {nonzero} weights, its mask keeps fewer")
        total += nonzero
    return total
