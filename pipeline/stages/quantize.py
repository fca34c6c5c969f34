"""Stage 5: the float network as a graph, and its 8-bit twin in the TensorRT form."""

from advprune.data import as_float
from export.check import sparsity_kept
from export.patterns import assert_two_in_four
from export.quantize import quantize
from export.to_onnx import to_onnx
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.training import images_of, network_of

FLOAT = "model.fp32.onnx"
INT8 = "model.int8.onnx"


def stage(recipe: Recipe) -> Stage:
    two_in_four = getattr(recipe.pruning_method(), "granularity", None) == "2:4"

    def run(context: Context) -> Metrics:
        images = images_of(context)
        net = network_of(context, "finetune").cpu()
        to_onnx(net, images.shape, context.out / FLOAT)
        calibration = as_float(images.calib.images).cpu().numpy()
        method = context.recipe.quantize.calibration
        quantize(context.out / FLOAT, calibration, context.out / INT8, method)
        kept = sparsity_kept(context.out / FLOAT, context.out / INT8).values()
        # A rounded zero is a zero, so the pattern that sparse kernels need must still be there.
        pattern = assert_two_in_four(context.out / INT8) if two_in_four else {}
        return {
            "calibration_images": len(calibration),
            "fp32_nonzero": sum(pair[0] for pair in kept),
            "int8_nonzero": sum(pair[1] for pair in kept),
            **({"two_in_four": sum(pair[0] for pair in pattern.values())} if two_in_four else {}),
        }

    return Stage("quantize", ("data", "finetune"), recipe.quantize.model_dump(), run)
