"""Stage 6: the files that ship, each checked against the network it came from."""

from pathlib import Path

import numpy as np

from advprune.data import ImageSet, as_float
from advprune.errors import Incompatible, NotFound
from advprune.evaluate import predict
from advprune.spans import span
from deploy.runtime import load
from export import graph
from export.check import assert_fused, assert_same_function, parity
from export.encodings import openvino_form, uint8_head, x86_form
from export.engine_card import BuildOptions
from export.to_half import to_half
from export.to_tensorrt import Built
from pipeline.engine import build_here
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.quantize import FLOAT, INT8
from pipeline.stages.training import images_of, network_of

X86 = "model.int8.x86.onnx"
OPENVINO = "model.int8.openvino.onnx"
CAMERA = "model.int8.camera.onnx"
HALF = "model.fp16.onnx"
ENGINE = "model.plan"
LARGEST_BATCH = 128
COMPARED = 64  # images on which both encodings must give the same bits
FLOAT_GAP = 1e-4  # another order of float32 additions stays far below this


def engines_of(folder: Path) -> dict[str, Path]:
    """Name -> file of the engines that this machine can run and attack; "int8" is what ships."""
    files = {"fp32": FLOAT, "fp16": HALF, "int8": X86, "int8-camera": CAMERA}
    return {name: folder / file for name, file in files.items() if (folder / file).exists()}


def engines_for(folder: Path, runtime: str | None) -> dict[str, Path]:
    """Name -> file of the engines that a runtime takes; None is the default of each file.

    The x86 forms are ONNX Runtime's on a CPU. OpenVINO has a form of its own, ONNX Runtime on a GPU
    gets TensorRT's, and TensorRT itself its engine.

    Raises:
        NotFound: the engine was not built.
    """
    files = engines_of(folder)
    if runtime in (None, "ort"):
        return files
    if runtime == "tensorrt":
        if not (folder / ENGINE).exists():
            raise NotFound(f"{folder}: has no {ENGINE}; export on a machine with TensorRT")
        return {"int8": folder / ENGINE}
    rounded = folder / (OPENVINO if runtime == "openvino" else INT8)
    return {name: path for name, path in files.items() if name != "int8-camera"} | {"int8": rounded}


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        images = images_of(context)
        labels = {"labels": "\n".join(images.classes)}
        models = {
            FLOAT: graph.load(context["quantize"].file(FLOAT)),
            INT8: graph.load(context["quantize"].file(INT8)),
        }
        models[X86] = x86_form(models[INT8])
        models[OPENVINO] = openvino_form(models[INT8])
        if context.recipe.uint8_head:
            models[CAMERA] = uint8_head(models[X86])
        if context.recipe.fp16:
            models[HALF] = to_half(models[FLOAT])
        for name, model in models.items():
            graph.set_metadata(model, labels)
            graph.save(model, context.out / name)
        operators = assert_fused(context.out / X86)
        pixels = as_float(images.val.images[:COMPARED]).cpu().numpy()
        encodings = [context.out / name for name in (X86, OPENVINO)]
        assert_same_function(context.out / INT8, encodings, pixels)
        options = BuildOptions(max_batch=LARGEST_BATCH)
        built = build_here(context.out / INT8, context.out / ENGINE, images.shape, options)
        return {
            **_float_parity(context, images),
            "fused_operators": ", ".join(f"{count} {name}" for name, count in operators.items()),
            "tensorrt": f"built with {built.version}" if isinstance(built, Built) else built.reason,
        }

    forms = {"uint8_head": recipe.uint8_head, "fp16": recipe.fp16}
    config = {**forms, "max_batch": LARGEST_BATCH}
    return Stage("export", ("data", "finetune", "quantize"), config, run, version=3)


@span("parity")
def _float_parity(context: Context, images: ImageSet) -> Metrics:
    """The float file must be the float network; what 8 bits cost is measured by `verify`."""
    net = network_of(context, "finetune")
    reference = predict(net, images.val.images).cpu().numpy()
    floats = as_float(images.val.images).cpu().numpy()
    exported = load(context.out / FLOAT).predict(floats)
    measured = parity(reference, exported)
    scale = max(1.0, float(np.abs(reference).max()))
    if measured["max_logit_gap"] > FLOAT_GAP * scale:
        raise Incompatible(
            f"export: {FLOAT} differs from its network by {measured['max_logit_gap']:.2g} in a "
            "logit; report this model as a defect of the exporter"
        )
    return {"fp32_logit_gap": measured["max_logit_gap"]}
