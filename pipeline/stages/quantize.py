"""Stage 5: the float network as a graph, and its 8-bit twin in the TensorRT form.

By calibration alone (ptq) or with robust training through the rounding (qat). Left to itself it
makes both and keeps the one that is better on images that no weight was trained on: those of the
validation and of the calibration split, since half of them would leave the choice to luck.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.data import ImageSet, as_float
from advprune.distillation import Distilled
from advprune.errors import Incompatible, Refused
from advprune.evaluate import craft, is_correct, predict, survives
from advprune.method import Task
from advprune.objectives import Objective
from advprune.repro import derive
from advprune.spans import span
from advprune.train import Trained, fit
from advprune.twin import differentiable
from deploy.replay import classifier
from deploy.runtime import load
from export import graph
from export.calibrate import doubts
from export.check import sparsity_kept
from export.encodings import x86_form
from export.fake_quant import FakeQuant, write
from export.patterns import assert_two_in_four
from export.quantize import quantize
from export.to_onnx import to_onnx
from pipeline.devices import resolve_device
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import (
    architecture_of,
    images_of,
    network_of,
    settings,
    write_history,
)

FLOAT = "model.onnx"
INT8 = "model.int8.onnx"
# The attacks that decide between the two: each loses some strength, both lose the same.
STEPS, QUERIES = 10, 100
_FROZEN = "8 bits by ptq: training through them would move frozen layers"


def how_of(recipe: Recipe) -> Literal["auto", "ptq", "qat"]:
    """As asked, but without training where layers are frozen.

    Raises:
        Refused: training was asked for.
    """
    how = recipe.quantize.how
    if recipe.freeze and how == "qat":
        raise Refused(
            f"--quantize qat would train what --freeze {' '.join(recipe.freeze)} keeps; "
            "give --quantize ptq"
        )
    return "ptq" if recipe.freeze else how


def stage(recipe: Recipe) -> Stage:
    how = how_of(recipe)
    two_in_four = getattr(recipe.pruning_method(), "granularity", None) == "2:4"

    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "finetune")
        to_onnx(net, images.shape, context.out / FLOAT)
        calibration = as_float(images.calib.images).cpu().numpy()
        unsure = doubts(calibration, *images.mean_std())
        quantize(context.out / FLOAT, calibration, context.out / INT8, recipe.quantize.calibration)
        chosen = {"quantisation": "ptq"} if how == "ptq" else _train(context, images, net)
        if recipe.freeze:
            chosen["no_training"] = _FROZEN
        kept = sparsity_kept(context.out / FLOAT, context.out / INT8).values()
        # A rounded zero is a zero, so the pattern that sparse kernels need must still be there.
        frozen = architecture_of(context, "finetune").frozen
        pattern = assert_two_in_four(context.out / INT8, len(frozen)) if two_in_four else {}
        return {
            **chosen,
            "calibration_images": len(calibration),
            "calibration_doubts": "; ".join(unsure),
            "fp32_nonzero": sum(pair[0] for pair in kept),
            "int8_nonzero": sum(pair[1] for pair in kept),
            **({"two_in_four": sum(pair[0] for pair in pattern.values())} if two_in_four else {}),
        }

    config: dict[str, Any] = {"how": how, "calibration": recipe.quantize.calibration}
    if how != "ptq":
        trained = recipe.quantize.model_dump(include={"scales", "distill"})
        threat = recipe.threat().to_dict()
        objective = _objective(recipe)
        config |= {**settings(recipe, recipe.quantize, objective), **trained, "judged_by": threat}
    return Stage("quantize", ("data", "finetune"), config, run, version=5)


def _train(context: Context, images: ImageSet, teacher: nn.Module) -> Metrics:
    """Train through the 8 bits of the calibrated file, and keep what came out if it is better."""
    recipe, path = context.recipe, context.out / INT8
    calibrated, model = path.read_bytes(), graph.load(path)
    try:
        fake = FakeQuant(graph.load(context.out / FLOAT), model, recipe.quantize.scales)
    except Incompatible as error:
        if recipe.quantize.how == "qat":
            raise
        return {"quantisation": "ptq", "no_training": str(error)}
    fake.to(resolve_device(recipe.device))
    write_history(context, _fit(context, images, fake, teacher))
    judged: dict[str, tuple[float, float]] = {}
    if recipe.quantize.how == "auto":
        judged["ptq"] = _judge(path, recipe, images)
    write(fake, model, path)
    judged["qat"] = _judge(path, recipe, images)
    better = max(judged, key=lambda name: judged[name])
    if better == "ptq":
        path.write_bytes(calibrated)
    robust, clean = judged[better]
    return {
        "quantisation": better,
        "unseen_clean": round(clean, 6),
        "unseen_robust": round(robust, 6),
        **{f"unseen_robust_{name}": round(one, 6) for name, (one, _) in judged.items()},
    }


def _fit(context: Context, images: ImageSet, fake: FakeQuant, teacher: nn.Module) -> Trained:
    recipe, training = context.recipe, context.recipe.quantize
    objective = _objective(recipe)
    if training.distill:
        plain = (objective.name, objective.threat, objective.steps, objective.beta)
        objective = Distilled(*plain, teacher=teacher, share=training.distill)
    task = Task(objective, recipe.seed, images.shape)
    select = training.validate_every > 0
    return fit(fake, images, task, training.schedule(), context.observer, select=select)


def _objective(recipe: Recipe) -> Objective:
    """Codes are whole numbers in float32: bfloat16 would round what the engine does not."""
    return replace(recipe.robust_objective(recipe.quantize), precision="fp32")


@span("judging")
def _judge(path: Path, recipe: Recipe, images: ImageSet) -> tuple[float, float]:
    """Robust and clean accuracy, on images of no training, of the engine that would ship.

    Both in [0, 1]; robust is what survives gradients through its twin and Square on itself.
    """
    unseen, threat = images.val.and_those_of(images.calib), recipe.threat()
    seed = derive(recipe.seed, "quantize")
    twin = differentiable(path.read_bytes(), path.name).to(unseen.images.device)
    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(folder, "x86.onnx")
        graph.save(x86_form(graph.load(path)), shipped)
        engine = classifier(load(shipped))
    clean = is_correct(predict(engine, unseen.images), unseen.labels)
    robust = survives(engine, unseen, threat, seed, partial(square, queries=QUERIES))
    for loss in (cross_entropy, margin):
        attack = partial(pgd_worst, steps=STEPS, restarts=1, loss=loss)
        candidates = craft(twin, unseen, threat, seed, attack)
        robust &= is_correct(predict(engine, candidates), unseen.labels)
    return float(robust.double().mean()), float(clean.double().mean())
