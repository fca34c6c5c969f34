"""What the training stages share: a network in, the same loop, a plain network out."""

from typing import Any

from torch import nn

from advprune.data import Files, ImageSet, read, root_of
from advprune.files import write
from advprune.masking import bake
from advprune.method import Task
from advprune.models import Architecture, build
from advprune.models.checkpoint import ARCHITECTURE, load, load_architecture, save
from advprune.objectives import Objective
from advprune.train import Trained, fit
from pipeline.devices import resolve_device
from pipeline.lines import METRICS, to_lines
from pipeline.recipe import Recipe
from pipeline.sections import Training
from pipeline.stage import Context, Metrics


def settings(recipe: Recipe, training: Training, objective: Objective) -> dict[str, Any]:
    """What the result of a training stage depends on, beside its parents."""
    adversarial = objective.name != "natural"
    return {
        # The objective is resolved below; a stage that spells out the recipe's is the same stage.
        "training": _steps(training),
        "objective": {
            "name": objective.name,
            "threat": objective.threat.to_dict() if adversarial else None,
            "steps": objective.steps if adversarial else None,
            "beta": objective.robust_weight,
            "precision": objective.precision,
            **({"replays": objective.times} if objective.name == "free" else {}),
        },
        "seed": recipe.seed,
    }


def _steps(training: Training) -> dict[str, Any]:
    given = training.model_dump(exclude={"objective"})
    # Where a batch is not shared, how it would be makes no difference.
    neutral = {"accumulate": 1, "sync_bn": True}
    return {key: value for key, value in given.items() if neutral.get(key) != value}


def images_of(context: Context) -> ImageSet:
    """The data set, on the device of the run; streamed images where they are in their files."""
    recipe = context.recipe
    files = Files(root_of(recipe.data, recipe.data_dir).resolve(), recipe.data_workers)
    return read(context["data"].check(), files).to(resolve_device(recipe.device))


def network_of(context: Context, stage: str) -> nn.Module:
    """The network that a stage left, on the device of the run."""
    return load(context[stage].check()).to(resolve_device(context.recipe.device))


def architecture_of(context: Context, stage: str) -> Architecture:
    """How the network that a stage left is built again."""
    return load_architecture(context[stage].file(ARCHITECTURE).parent)


def train(
    context: Context,
    net: nn.Module,
    architecture: Architecture,
    training: Training,
    objective: Objective,
) -> tuple[nn.Module, Trained]:
    """Run the loop, write the plain network and the history; the masks of `net` stay in force."""
    images = images_of(context)
    net = net.to(resolve_device(context.recipe.device))
    task = Task(objective, context.recipe.seed, images.shape)
    trained = fit(
        net,
        images,
        task,
        training.schedule(),
        context.observer,
        select=training.validate_every > 0,
    )
    write_network(context, net, architecture)
    write_history(context, trained)
    return net, trained


def write_network(context: Context, net: nn.Module, architecture: Architecture) -> None:
    """Bake whatever is attached and save the plain network."""
    save(bake(net, build(architecture)), architecture, context.out)


def write_history(context: Context, trained: Trained) -> None:
    """What was appended line by line meanwhile, now as a whole and for good."""
    write(context.out / METRICS, to_lines(trained.history))


def last_metrics(trained: Trained) -> Metrics:
    """The measurements on the validation split after the last epoch, and what went wrong."""
    last = trained.history[-1] if trained.history else {}
    metrics = {key: round(value, 6) for key, value in last.items() if key.startswith("val_")}
    for row in trained.history:
        if "overfitted" in row:
            metrics["overfitted_in_epoch"] = row["epoch"]
    return metrics
