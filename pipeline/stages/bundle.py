"""Stage 10: what goes to the device, unless the gate said no."""

import json

import numpy as np

from advprune.data import as_float
from deploy.bundle import SAMPLES, write_bundle
from deploy.runtime import load
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
        samples = _pad(images.test.images[:SAMPLES].cpu().numpy())
        floats = as_float(images.test.images[:SAMPLES]).cpu().numpy()
        logits = {name: load(path).predict(_pad(floats)) for name, path in models.items()}
        report = json.loads(context["report"].file("report.json").read_text())
        write_bundle(
            context.out / FOLDER,
            models=models,
            labels=list(images.classes),
            metadata={
                "model": context.recipe.model,
                "title": report["title"],
                "verdict": report["verdict"],
                "threat": report["threat"],
                "sparsity": report["sparsity"]["got"],
                "images": report["images"],
                "robust_accuracy": {e["name"]: e["worst"] for e in report["engines"]},
                "clean_accuracy": {e["name"]: e["clean"] for e in report["engines"]},
                "operators": sorted({n.op_type for n in graph.load(folder / INT8).graph.node}),
            },
            samples=samples,
            logits=logits,
        )
        return {"bundle": FOLDER, "models": len(models)}

    return Stage("bundle", ("data", "export", "gate", "report"), {"samples": SAMPLES}, run)


def _pad(images: np.ndarray) -> np.ndarray:
    """Sixteen images also where the test split has fewer: they begin again."""
    return images[np.arange(SAMPLES) % len(images)]
