"""Stage 2: the dense network, hardened from the standard one under the recipe's objective."""

from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import architecture_of, last_metrics, network_of, settings, train


def stage(recipe: Recipe) -> Stage:
    objective = recipe.robust_objective(recipe.adversarial)

    def run(context: Context) -> Metrics:
        net = network_of(context, "standard")
        architecture = architecture_of(context, "standard")
        _, trained = train(context, net, architecture, context.recipe.adversarial, objective)
        return last_metrics(trained)

    config = settings(recipe, recipe.adversarial, objective)
    return Stage("adversarial", ("data", "standard"), config, run, version=2)
