"""Stage 10: what goes to the device, unless the gate said no."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advprune.data import ImageSet, as_float
from deploy.bundle import SAMPLES, write_bundle
from deploy.runtime import EdgeModel, load
from export import graph
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.export import engines_of
from pipeline.stages.quantize import INT8
from pipeline.stages.training import images_of

FOLDER = "bundle"


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        verdict = str(context["gate"].metrics["verdict"])
        if verdict == "FAIL":
            reason = "the gate failed, so there is nothing to ship"
            write_json(context.out / "skipped.json", {"reason": reason})
            return {"bundle": f"none: {reason}"}
        folder = context["export"].check()
        # The TensorRT form computes what the x86 form computes, on another engine.
        models = {**engines_of(folder), "int8-tensorrt": folder / INT8}
        images = images_of(context)
        write_bundle(
            context.out / FOLDER,
            models=models,
            labels=list(images.classes),
            metadata=facts(context, folder / INT8),
            samples=samples_of(images),
            logits={name: answers(load(path), images) for name, path in models.items()},
        )
        return {"bundle": FOLDER, "models": len(models)}

    return Stage("bundle", ("data", "export", "gate", "report"), {"samples": SAMPLES}, run)


def facts(context: Context, onnx_path: Path) -> Mapping[str, Any]:
    """What a bundle says of its models: what the report found, and the operators of a graph."""
    report = json.loads(context["report"].file("report.json").read_text())
    return {
        "model": context.recipe.model,
        "title": report["title"],
        "verdict": report["verdict"],
        "threat": report["threat"],
        "sparsity": report["sparsity"]["got"],
        "images": report["images"],
        "robust_accuracy": {e["name"]: e["worst"] for e in report["engines"]},
        "clean_accuracy": {e["name"]: e["clean"] for e in report["engines"]},
        "operators": sorted({node.op_type for node in graph.load(onnx_path).graph.node}),
    }


def samples_of(images: ImageSet) -> NDArray[np.uint8]:
    """The images that a device is tested with."""
    return _pad(images.test.images[:SAMPLES].cpu().numpy())


def answers(model: EdgeModel, images: ImageSet) -> NDArray[np.float32]:
    """The logits of an engine for these images."""
    return model.predict(_pad(as_float(images.test.images[:SAMPLES]).cpu().numpy()))


def _pad(images: NDArray) -> NDArray:
    """Sixteen images also where the test split has fewer: they begin again."""
    return images[np.arange(SAMPLES) % len(images)]
