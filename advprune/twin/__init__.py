"""The function in an ONNX file as a network with gradients, 8-bit rounding included.

An engine has no gradient, and attacks on its float ancestor make it look more robust than it is.
This is a twin of the very file that ships: it computes what the file says, node by node, and
gradients pass straight through rounding.
"""

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, helper
from torch import nn

from advprune.errors import BadData, Incompatible
from advprune.twin.codes import Unsupported
from advprune.twin.network import DOMAINS, Network, image_inputs

# Before 13 the same attributes of some operators meant something else.
_OPSETS = range(13, 25)


def differentiable(data: bytes, origin: str) -> nn.Module:
    """A network of the same logits as the engine that runs this file, and with gradients.

    It takes float32 (N, C, H, W) in [0, 1], any N >= 1, as `EdgeModel.predict` does whatever the
    graph takes: pixels of a uint8 graph are rounded here. It gives float32 (N, K). Its constants
    are buffers, and none of its tensors requires a gradient.

    Args:
        data: a whole ONNX file with all its weights inside, any precision, either input form.
        origin: its name, for messages.

    Raises:
        BadData: the file is broken, or does not turn images into logits.
        Incompatible: something in it has no differentiable counterpart here.
    """
    model = _parse(data, origin)
    try:
        camera, shape = _input_form(model.graph, origin)
        _check_opset(model)
        twin = Network(model.graph, camera)
        with torch.no_grad():
            logits = twin(torch.zeros(2, *shape))
    except Unsupported as error:
        raise Incompatible(
            f"{origin}: no gradient through {error}; attack with square, which needs scores only"
        ) from error
    # A valid graph may still add tensors that do not fit, and torch says so in many ways.
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise BadData(f"{origin}: cannot be computed ({reason}); export it again") from error
    if logits.ndim != 2 or len(logits) != 2 or logits.dtype != torch.float32:
        raise BadData(
            f"{origin}: gives {logits.dtype} {tuple(logits.shape)} for two images; need one float "
            "logit for each class"
        )
    return twin.eval()


def _parse(data: bytes, origin: str) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
        tensors = [*model.graph.initializer]
        tensors += [a.t for node in model.graph.node for a in node.attribute]
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors):
            raise BadData(f"{origin}: weights lie in another file; export with external_data=False")
        onnx.checker.check_model(model)
    # A ValueError, where the checker cannot even read the name that it would complain about.
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{origin}: not a valid ONNX model ({reason}); export it again") from error
    return model


def _check_opset(model: ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = next((versions[domain] for domain in DOMAINS if domain in versions), 0)
    if opset not in _OPSETS:
        raise Unsupported(f"opset {opset}, other than {_OPSETS[0]} to {_OPSETS[-1]}")


def _input_form(graph: GraphProto, origin: str) -> tuple[bool, tuple[int, int, int]]:
    """Whether the graph takes camera images, uint8 (N, H, W, C), and (C, H, W) of one image."""
    inputs = image_inputs(graph)
    if len(inputs) == len(graph.output) == 1:
        kind, dims = inputs[0].type.tensor_type.elem_type, inputs[0].type.tensor_type.shape.dim
        sizes = [dim.dim_value for dim in dims]
        if len(sizes) == 4 and not sizes[0] and all(sizes[1:]):
            _, a, b, c = sizes
            if kind == TensorProto.FLOAT:
                return False, (a, b, c)
            if kind == TensorProto.UINT8:
                return True, (c, a, b)
    raise BadData(
        f"{origin}: takes {[helper.printable_value_info(value) for value in inputs]}; need one "
        "input, float32 (batch, C, H, W) or uint8 (batch, H, W, C) of fixed size and free batch"
    )
