"""Stage 5: the float network as a graph, and its 8-bit twin in the TensorRT form."""

from advprune.data import as_float
from export.check import sparsity_kept
from export.quantize import quantize
from export.to_onnx import to_onnx
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import images_of, network_of

FLOAT = "model.fp32.onnx"
INT8 = "model.int8.onnx"


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "finetune").cpu()
        to_onnx(net, images.shape, context.out / FLOAT)
        calibration = as_float(images.calib.images).cpu().numpy()
        method = context.recipe.quantize.calibration
        quantize(context.out / FLOAT, calibration, context.out / INT8, method)
        kept = sparsity_kept(context.out / FLOAT, context.out / INT8).values()
        return {
            "calibration_images": len(calibration),
            "fp32_nonzero": sum(pair[0] for pair in kept),
            "int8_nonzero": sum(pair[1] for pair in kept),
        }

    return Stage("quantize", ("data", "finetune"), recipe.quantize.model_dump(), run)
