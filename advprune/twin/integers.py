"""Layers between dequantised tensors, computed on the codes as integer kernels do.

Whole numbers below 2**24 add up exactly in float32, in any order. So rounding meets the values
that an integer kernel gives it, in batches of any size. Sums of scaled values are off by enough to
round one value in ten thousand to the next code, and every layer multiplies those.
"""

from collections.abc import Collection

from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from advprune.twin.codes import along

_ZERO_POINTS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)


def on_codes(graph: GraphProto) -> list[NodeProto]:
    """The nodes of a graph, in such layers Centre on the way in and Rescale on the way out.

    That is Conv and Gemm, of activations with one scale and weights with one for each output.
    Centre and Rescale are no operators of ONNX; they are the functions of these names.
    """
    producers = {name: node for node in graph.node for name in node.output}
    scalars = {tensor.name for tensor in graph.initializer if not tensor.dims}
    integers = [tensor for tensor in graph.initializer if tensor.data_type in _ZERO_POINTS]
    zeros = {tensor.name for tensor in integers if not numpy_helper.to_array(tensor).any()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        factors = [producers[name] for name in node.input[:2] if name in producers]
        if not _sums_codes(node, factors, scalars):
            nodes.append(node)
            continue
        x, weight = factors
        result = node.output[0]
        parts = ("codes", "filters", "step", "bias", "sums")
        codes, filters, step, bias, sums = (f"{result}_{part}" for part in parts)
        for factor, centred in ((x, codes), (weight, filters)):
            shifted = [factor.input[0], *(name for name in factor.input[2:] if name not in zeros)]
            nodes.append(helper.make_node("Centre", shifted, [centred], factor.name, axis=0))
        nodes.append(helper.make_node("Mul", [x.input[1], weight.input[1]], [step], node.name))
        layer = NodeProto.FromString(node.SerializeToString())
        layer.input[:], layer.output[:] = [codes, filters], [sums]
        if len(node.input) > 2:
            # In units of the sums, as integer kernels add it.
            nodes.append(helper.make_node("Div", [node.input[2], step], [bias], node.name))
            layer.input.append(bias)
        nodes += [layer, helper.make_node("Rescale", [sums, step], [result], node.name)]
    return nodes


def _sums_codes(node: NodeProto, factors: list[NodeProto], scalars: Collection[str]) -> bool:
    """Whether the layer sums products of codes that all have the same scale."""
    if [factor.op_type for factor in factors] != ["DequantizeLinear"] * 2:
        return False
    x, weight = factors
    settings = _settings(node)
    layer = node.op_type == "Conv" or (node.op_type == "Gemm" and settings.get("transB") == 1)
    plain = all(settings.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    by_output = weight.input[1] in scalars or _settings(weight).get("axis") == 0
    return layer and plain and x.input[1] in scalars and by_output


def _settings(node: NodeProto) -> dict[str, object]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def rescale(sums: Tensor, step: Tensor) -> Tensor:
    """sums * step, from sums of products of codes to values.

    Args:
        sums: (N, C, ...).
        step: scale of the activations times that of the weights, a scalar or (C,).
    """
    return sums * along(step, 1, sums)
