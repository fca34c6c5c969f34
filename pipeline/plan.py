"""Which stages a recipe means, in order, and what each would cost."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from advprune import ranks
from deploy.gate_outlook import Outlook, outlook
from deploy.verdicts import canonical
from pipeline.devices import fix_arithmetic, platform
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Stage
from pipeline.stages import (
    adversarial,
    bundle,
    data,
    export,
    finetune,
    gate,
    prune,
    quantize,
    report,
    standard,
    verify,
)
from pipeline.store import Store

ORDER = (
    data,
    standard,
    adversarial,
    prune,
    finetune,
    quantize,
    export,
    verify,
    gate,
    report,
    bundle,
)


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a run. Raises Refused, or NotFound for the data, before anything is written."""
    fix_arithmetic(recipe.threads)
    here = platform(recipe.device)
    # Ranks add in another order, as threads do; what they share of a verification is the same bits.
    many = {"ranks": ranks.count()} if ranks.count() > 1 else {}

    def placed(stage: Stage) -> Stage:
        there = {**here, **many} if stage.name in _TRAINING else here
        return replace(stage, config={**stage.config, "platform": there})

    return [placed(module.stage(recipe)) for module in ORDER]


def run_name(recipe: Recipe, stages: list[Stage]) -> str:
    """For people first; the suffix tells settings apart that the name does not show."""
    identity = {stage.name: [stage.version, stage.config] for stage in stages}
    return f"{recipe.name}_{hashlib.sha256(canonical(identity)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Forecast:
    """What is known of a stage before it runs.

    Attributes:
        seconds: None where they cannot be estimated.
        outlook: of the gate alone: what its images can tell.
    """

    name: str
    cached: bool
    seconds: float | None
    outlook: Outlook | None = None


def forecast(recipe: Recipe, store: Store) -> list[Forecast]:
    """Which stages are cached, and measured estimates for the training stages that are not."""
    stages = plan(recipe)
    known: dict[str, Artifact] = {}
    for stage in stages:
        if all(need in known for need in stage.needs):
            found = store.find(stage, known)
            if found:
                known[stage.name] = found
    costs: Mapping[str, float] = {}
    if any(stage.name not in known for stage in stages if stage.name in _TRAINING):
        costs, sizes = _training_seconds(recipe)
        count = sizes[recipe.verify.split]
    else:
        count = int(known["data"].metrics[recipe.verify.split])
    judged = min(count, recipe.verify.settings(recipe.seed).images)
    outlooks = {"gate": outlook(judged, recipe.gate.terms())}
    return [
        Forecast(s.name, s.name in known, costs.get(s.name), outlooks.get(s.name)) for s in stages
    ]


_TRAINING = ("standard", "adversarial", "prune", "finetune", "quantize")


def _training_seconds(recipe: Recipe) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each training stage, and how many images there are of each split.

    A stage takes one measured step of its objective, times its steps.
    """
    from pipeline.probe import PROBED, Probe, trainings

    images, sizes = data.sample_images(recipe, PROBED)
    probe = Probe(recipe, images)
    # Extra images join every batch one for one.
    an_epoch = sizes["train"] * (1 if images.extra is None else 2)
    # A survey costs what it costs: how much, its file alone knows.
    found = {} if recipe.pruning_method().surveys else {"prune": 0.0}
    for name, (training, objective) in trainings(recipe).items():
        steps = training.epochs * an_epoch / probe.size * objective.times
        found[name] = steps * probe.seconds(objective)
    return found, sizes
