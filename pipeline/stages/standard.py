"""Stage 1: the dense network, trained on clean images; from random weights, or from a file's."""

from pipeline.beginning import begin, identity
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import images_of, last_metrics, settings, train


def stage(recipe: Recipe) -> Stage:
    """Raises Refused and its kinds: no such model or weights, before anything else is done."""
    objective = recipe.natural_objective()
    first = identity(recipe)

    def run(context: Context) -> Metrics:
        start = begin(context.recipe, images_of(context), first.get("weights"))
        training = context.recipe.standard
        _, trained = train(context, start.net, start.architecture, training, objective)
        return {
            **({"began": start.told} if start.told else {}),
            **_frozen(start.architecture.frozen),
            **last_metrics(trained),
        }

    config = {**first, **settings(recipe, recipe.standard, objective)}
    return Stage("standard", ("data",), config, run, version=2)


def _frozen(layers: tuple[str, ...]) -> Metrics:
    """How many, for the screen; which ones, for the report."""
    if not layers:
        return {}
    names = " ".join(name.removeprefix("network.") for name in layers)
    return {"frozen": f"{len(layers)} layers frozen", "frozen_layers": names}
