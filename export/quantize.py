"""Post-training 8 bits: a float graph and calibration images -> a QuantizeLinear graph.

The result is in the form that TensorRT takes: int8 with zero point 0 everywhere, one scale for
each activation tensor and one for each output channel of a weight, weights stored as int8 behind
DequantizeLinear, biases and logits float. `encodings.x86_form` rewrites it for ONNX Runtime.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from advprune.errors import BadData, Incompatible
from advprune.spans import span
from export import graph
from export.calibrate import Method, magnitudes
from export.rounding import LARGEST_CODE, SMALLEST_SCALE, round_bias, round_weight

WEIGHTED = {"Conv", "Gemm", "MatMul"}
_POOLS = {"GlobalAveragePool", "AveragePool"}
_SAME_SCALE = {"MaxPool", "Reshape", "Flatten"}
_CLIPPING = {"Relu", "Clip"}


@span("conversion")
def quantize(
    float_onnx: Path, calibration: NDArray[np.float32], out_path: Path, method: Method = "minmax"
) -> None:
    """Write the 8-bit twin of a float graph.

    Quantised are: the network's input after normalisation, what every convolution, linear layer
    and pooling reads, both operands of every residual addition, and pooled features. Zero weights
    stay zero, so masks survive.

    Args:
        float_onnx: a graph from `to_onnx`, BatchNorm folded where a convolution precedes it.
        calibration: float32 (N, C, H, W) in [0, 1], N >= 128, from the task and never from test.
        out_path: the file to write.
        method: how activation scales are chosen, see `calibrate.magnitudes`.

    Raises:
        NotFound, BadData: the graph or the images are missing or not what they must be.
        Incompatible: the graph is quantised already, or the images do not fit it.
        CannotCreate: the file cannot be written.
    """
    model = graph.load(float_onnx)
    if count := graph.quantisation_nodes(model):
        raise Incompatible(f"{float_onnx}: already quantised ({count} Q/DQ nodes); give the float")
    for name, values in graph.constants(model).items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadData(f"{float_onnx}: {name} holds values that are not finite; train again")
    operators = WEIGHTED | _POOLS | _SAME_SCALE | {"Add", "Concat"}
    limits = magnitudes(model, calibration, method, operators)
    _quantise_activations(model, limits)
    _quantise_weights(model)
    graph.set_metadata(
        model,
        {"precision": "int8", "encoding": "tensorrt", "calibration": method, "quantisation": "ptq"},
    )
    graph.save(model, out_path)


def _quantise_activations(model: ModelProto, limits: dict[str, float]) -> None:
    """Round each chosen tensor; all of its readers see the rounded one."""
    nodes = list(model.graph.node)
    scales: dict[str, NDArray] = {"int8_zero": np.array(0, np.int8)}
    for name, source in _chosen(model, limits).items():
        limit = limits[source]
        if not np.isfinite(limit):
            raise BadData(f"quantise: {source} is not finite on the calibration images")
        # A tensor that is zero on every image may have any scale, but engines want one above 0.
        step = limit / LARGEST_CODE
        scale = f"{source}_scale"
        scales[scale] = np.array(step if step >= SMALLEST_SCALE else 1.0, np.float32)
        rounded, result = f"{name}_quantized", f"{name}_dequantized"
        for node in nodes:
            node.input[:] = [result if item == name else item for item in node.input]
        parameters = [scale, "int8_zero"]
        nodes.append(
            helper.make_node("QuantizeLinear", [name, *parameters], [rounded], f"{name}_quantize")
        )
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [rounded, *parameters], [result], f"{name}_dequantize"
            )
        )
    graph.put_constants(model, scales)
    graph.put_nodes(model, nodes)


def _chosen(model: ModelProto, measured: Collection[str]) -> dict[str, str]:
    """Tensors to quantise -> the tensor whose scale each of them takes.

    Chosen is what 8-bit kernels read, and what they write unless only a Relu or Clip reads it: then
    the kernel takes that in. A kernel that writes float would run in float. Reshaping and maximum
    pooling move codes without rounding them, so their result takes the scale of their input.
    Concatenation does too, so what it reads takes the scale of its result, unless other kernels
    have given that tensor a scale of its own.
    """
    constants = graph.constants(model)
    readers = graph.consumers(model)
    floats = _logits(model)
    chosen: dict[str, str] = {}

    def choose(name: str, source: str) -> None:
        # Nobody measures integers: the shapes that a graph adds and concatenates.
        if name in measured and name not in floats:
            chosen.setdefault(name, source)

    for node in model.graph.node:
        operands = [name for name in node.input if name and name not in constants]
        if not operands:
            continue  # the same on every image, so no kernel computes it
        result = node.output[0]
        if node.op_type in WEIGHTED or _is_residual(node, operands):
            for name in operands:
                choose(name, name)
        if node.op_type == "Concat":
            for name in operands:
                choose(name, result)
        if node.op_type in _POOLS | _SAME_SCALE:
            choose(operands[0], operands[0])
        if node.op_type in _SAME_SCALE and operands[0] in chosen:
            choose(result, chosen[operands[0]])
        writes = node.op_type in {"Conv", *_POOLS} or _is_residual(node, operands)
        if writes and {reader.op_type for reader in readers.get(result, [])} - _CLIPPING:
            choose(result, result)
    return chosen


def _is_residual(node: NodeProto, operands: list[str]) -> bool:
    """An addition of two computed tensors, unlike the one of a bias or a mean."""
    return node.op_type == "Add" and len(operands) == 2


def _logits(model: ModelProto) -> set[str]:
    """The graph's outputs, under every name that they have before being reshaped."""
    names = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if node.op_type in _SAME_SCALE and node.output[0] in names:
            names.add(node.input[0])
    return names


def _quantise_weights(model: ModelProto) -> None:
    constants = graph.constants(model)
    producers = graph.producers(model)
    values: dict[str, NDArray] = {}
    nodes = list(model.graph.node)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in constants:
            continue
        name = node.input[1]
        weight, axis = constants[name], output_axis(node)
        step = constants[producers[node.input[0]].input[1]]
        bias = constants[node.input[2]] if len(node.input) > 2 else None
        codes, scales, on_grid = _rounded(weight, axis, step, bias)
        if f"{name}_quantized" in values:  # a module that is called twice, at two input scales
            name = f"{name}_{node.name}"
        parameters = {
            f"{name}_quantized": codes,
            f"{name}_scale": scales,
            f"{name}_zero": np.zeros(len(scales), np.int8),
        }
        values |= parameters
        node.input[1] = f"{name}_dequantized"
        if on_grid is not None:
            node.input[2] = f"{name}_bias"
            values[node.input[2]] = on_grid
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [*parameters], [node.input[1]], f"{name}_dequantize", axis=axis
            )
        )
    graph.put_constants(model, values)
    graph.put_nodes(model, nodes)
    graph.drop_unused_constants(model)


def _rounded(
    weight: NDArray[np.float32], axis: int, step: NDArray[np.float32], bias: NDArray | None
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32] | None]:
    """Codes, scales and bias on its grid, as the file holds them."""
    w, s = torch.tensor(weight), torch.tensor(step)
    b = None if bias is None else torch.tensor(bias)
    codes, scales = round_weight(w, axis, s, b)
    on_grid = None if b is None else round_bias(b, s, scales).numpy()
    return codes.numpy().astype(np.int8), scales.numpy(), on_grid


def output_axis(node: NodeProto) -> int:
    """The axis of a weight that counts output channels."""
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return 0 if node.op_type == "Conv" or settings.get("transB", 0) else 1
