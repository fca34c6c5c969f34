"""The same 8-bit function for other engines, and other ways to hand it images.

TensorRT wants int8 codes with zero point 0. ONNX Runtime on x86 has fast kernels only for uint8
activations, and only where a convolution is followed directly by QuantizeLinear. Moving every
code up by 128, and taking the maximum with the code of zero after rounding instead of a Relu
before it, changes neither a rounding nor a clip. OpenVINO takes the codes of TensorRT, and needs to
be kept from fusing a rounding away.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from advprune.errors import Incompatible
from export import graph

ZERO = 128


def x86_form(model: ModelProto) -> ModelProto:
    """The TensorRT form with uint8 activations, which ONNX Runtime fuses into integer kernels.

    Bit-identical logits without graph optimisation. Fused, sums are exact where float sums round,
    so a result next to a tie can differ by one step; and an image has the same logits in every
    batch. On x86 without VNNI that takes the session setting `session.x64quantprecision=1`, or the
    kernels add pairs of products in int16 and saturate.

    Raises:
        Incompatible: the graph is not in the TensorRT form.
    """
    result = _copy_of_tensorrt_form(model, "x86 form")
    constants = graph.constants(result)
    producers = graph.producers(result)
    quantisers = [node for node in result.graph.node if node.op_type == "QuantizeLinear"]
    new: dict[str, NDArray] = {"uint8_zero": np.array(ZERO, np.uint8)}
    nodes = list(result.graph.node)
    codes = {node.output[0] for node in quantisers}
    for node in result.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in codes:
            node.input[2] = "uint8_zero"
    for node in quantisers:
        node.input[2] = "uint8_zero"
        clip = producers.get(node.input[0])
        if clip is None or clip.op_type not in {"Relu", "Clip"}:
            continue
        node.input[0] = clip.input[0]
        nodes += _clip_codes(node, _bounds(clip, constants), constants[node.input[1]], new)
    nodes += _bias_codes(result, constants, producers, new)
    graph.put_constants(result, new)
    graph.put_nodes(result, nodes)
    _drop_unread(result, {"Relu", "Clip"})
    graph.drop_unused_constants(result)
    graph.set_metadata(result, {"encoding": "x86"})
    graph.strip(result)
    return result


def _bounds(clip: NodeProto, constants: dict[str, NDArray]) -> tuple[float, float]:
    if clip.op_type == "Relu":
        return 0.0, np.inf
    low, high = (*clip.input[1:], "", "")[:2]
    return (
        float(constants[low]) if low else -np.inf,
        float(constants[high]) if high else np.inf,
    )


def _clip_codes(
    quantiser: NodeProto, bounds: tuple[float, float], scale: NDArray, new: dict[str, NDArray]
) -> list[NodeProto]:
    """Clip codes instead of values: rounding never swaps two values, so both give the same code."""
    with np.errstate(over="ignore"):
        steps = np.rint(np.array(bounds, np.float32) / scale)
    low, high = np.clip(steps + ZERO, 0, 255).astype(np.uint8)
    limits = [("Max", low)] if low > 0 else []
    limits += [("Min", high)] if high < 255 else []
    final = quantiser.output[0]
    nodes: list[NodeProto] = []
    for kind, code in limits:
        before, limit = f"{final}_before_{kind}", f"code_{code}"
        (nodes[-1] if nodes else quantiser).output[0] = before
        new[limit] = np.array(code, np.uint8)
        nodes.append(helper.make_node(kind, [before, limit], [final], f"{final}_{kind}"))
    return nodes


def _bias_codes(
    model: ModelProto,
    constants: dict[str, NDArray],
    producers: dict[str, NodeProto],
    new: dict[str, NDArray],
) -> list[NodeProto]:
    """Biases as the int32 codes that `quantize` rounded them to, so that nothing rounds again.

    A bias that lies on no such grid stays float.
    """
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        factors = [producers[name] for name in node.input[:2] if name in producers]
        kinds = [factor.op_type for factor in factors]
        has_bias = node.op_type in {"Conv", "Gemm"} and len(node.input) > 2
        if not has_bias or kinds != ["DequantizeLinear"] * 2:
            continue
        name = node.input[2]
        step, scales = (constants[factor.input[1]] for factor in factors)
        grid, bias = step * scales, constants[name]
        near = np.rint((bias / grid.astype(np.float64)).astype(np.float32))
        # Above 2**23 dividing may miss the code by one float; any code with this product will do.
        candidates = [near, np.nextafter(near, -np.inf), np.nextafter(near, np.inf)]
        codes = np.select([np.rint(c) * grid == bias for c in candidates], candidates, np.nan)
        if np.isnan(codes).any():
            continue
        parameters = {f"{name}_codes": np.rint(codes).astype(np.int32), f"{name}_scale": grid}
        new |= parameters
        node.input[2] = f"{name}_dequantized"
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [*parameters], [node.input[2]], f"{name}_dequantize", axis=0
            )
        )
    return nodes


def _drop_unread(model: ModelProto, kinds: set[str]) -> None:
    """Remove nodes of these kinds whose result nobody reads any more."""
    read = set(graph.consumers(model)) | {value.name for value in model.graph.output}
    graph.put_nodes(
        model,
        [
            node
            for node in model.graph.node
            if node.op_type not in kinds or not read.isdisjoint(node.output)
        ],
    )


def openvino_form(model: ModelProto) -> ModelProto:
    """The TensorRT form with a bound that never binds beside each rounded result that is added.

    OpenVINO runs the TensorRT form in integers, but where a convolution's result is rounded and
    added it fuses the three and leaves the rounding out: every tenth value is then one step off.
    What stands between keeps the rounding, at the price of a pass over these tensors.

    Raises:
        Incompatible: the graph is not in the TensorRT form.
    """
    result = _copy_of_tensorrt_form(model, "openvino form")
    constants, producers = graph.constants(result), graph.producers(result)
    held: dict[str, str] = {}
    bounds: dict[str, NDArray] = {}
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        for i, name in enumerate(node.input):
            rounded = producers.get(name)
            if node.op_type != "Add" or rounded is None or rounded.op_type != "DequantizeLinear":
                continue
            quantiser = producers.get(rounded.input[0])
            source = producers.get(quantiser.input[0]) if quantiser else None
            if source is None or source.op_type != "Conv":
                continue
            if name not in held:
                held[name], bound = f"{name}_held", f"{name}_bound"
                # Below the lowest code.
                bounds[bound] = constants[rounded.input[1]] * np.float32(-ZERO - 1)
                nodes.append(helper.make_node("Max", [name, bound], [held[name]], f"{name}_hold"))
            node.input[i] = held[name]
        nodes.append(node)
    graph.put_constants(result, bounds)
    graph.put_nodes(result, nodes)
    graph.set_metadata(result, {"encoding": "openvino"})
    graph.strip(result)
    return result


def _copy_of_tensorrt_form(model: ModelProto, purpose: str) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    if graph.activation_types(result) != {"int8"}:
        raise Incompatible(
            f"{purpose}: need a graph with int8 activations; quantise the float first"
        )
    return result


def uint8_head(model: ModelProto) -> ModelProto:
    """The same graph for cameras: `images` becomes uint8 (batch, H, W, C).

    Pixels are divided by 255 exactly as on the way into training, so logits on 8-bit images are
    the same bits. It also means that an adversary can only use 8-bit images.

    Raises:
        Incompatible: the graph does not take float32 (batch, C, H, W).
    """
    result = ModelProto()
    result.CopyFrom(model)
    entry = result.graph.input[0]
    kind, dims = entry.type.tensor_type.elem_type, entry.type.tensor_type.shape.dim
    if kind != TensorProto.FLOAT or len(dims) != 4:
        raise Incompatible("uint8 head: need a graph that takes float32 (batch, C, H, W)")
    batch, channels, height, width = (dim.dim_param or dim.dim_value for dim in dims)
    pixels = helper.make_tensor_value_info(
        entry.name, TensorProto.UINT8, [batch, height, width, channels]
    )
    inside = f"{entry.name}_float"
    for node in result.graph.node:
        node.input[:] = [inside if name == entry.name else name for name in node.input]
    head = [
        helper.make_node(
            "Cast", [entry.name], ["head_cast"], "head_cast", to=int(TensorProto.FLOAT)
        ),
        helper.make_node("Div", ["head_cast", "head_255"], ["head_unit"], "head_divide"),
        helper.make_node("Transpose", ["head_unit"], [inside], "head_transpose", perm=[0, 3, 1, 2]),
    ]
    entry.CopyFrom(pixels)
    graph.put_constants(result, {"head_255": np.array(255, np.float32)})
    graph.put_nodes(result, [*head, *result.graph.node])
    graph.set_metadata(result, {"input": "uint8 NHWC"})
    graph.strip(result)
    return result
