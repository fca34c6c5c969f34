"""Stage 1: the dense network, trained on clean images."""

from advprune.models import source_digest
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import fresh, images_of, last_metrics, settings, train


def stage(recipe: Recipe) -> Stage:
    """Raises Refused or NotFound where there is no such model, before anything else is done."""
    objective = recipe.natural_objective()

    def run(context: Context) -> Metrics:
        net = fresh(context.recipe, images_of(context))
        _, trained = train(context, net, context.recipe.standard, objective)
        return last_metrics(trained)

    config = {
        "model": recipe.model,
        "source": source_digest(recipe.model),
        **settings(recipe, recipe.standard, objective),
    }
    return Stage("standard", ("data",), config, run, version=2)
