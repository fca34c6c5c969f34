"""Stage 4: robust fine-tuning; the masks are held, removed weights stay exactly zero."""

from advprune.errors import BadData
from advprune.masking import hold
from advprune.masks import load_masks
from advprune.stats import layer_counts
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import last_metrics, network_of, settings, train


def stage(recipe: Recipe) -> Stage:
    objective = recipe.robust_objective(recipe.finetune)

    def run(context: Context) -> Metrics:
        masks = load_masks(context["prune"].file("masks.safetensors"))
        net = network_of(context, "prune")
        device = next(net.parameters()).device
        hold(net, {name: mask.to(device) for name, mask in masks.items()})
        net, trained = train(context, net, context.recipe.finetune, objective)
        total, kept = 0, 0
        for name, (nonzero, size) in layer_counts(net).items():
            if nonzero > int(masks[name].sum()):
                raise BadData(f"finetune: {name} has {nonzero} weights, its mask keeps fewer")
            total, kept = total + size, kept + nonzero
        return {"sparsity": 1.0 - kept / total, **last_metrics(trained)}

    config = settings(recipe, recipe.finetune, objective)
    return Stage("finetune", ("data", "prune"), config, run)
