"""A network as an ONNX graph: float32, dynamic batch, one file, the same bytes every time."""

import copy
from pathlib import Path

import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from torch import nn
from torch.nn.utils import parametrize

from advprune.errors import Incompatible
from advprune.spans import span
from export import graph

OPSET = 20
LARGEST_BATCH = 4096


@span("conversion")
def to_onnx(net: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Export what the network computes in evaluation mode, BatchNorm folded into convolutions.

    The graph takes `images`, float32 (batch, C, H, W), and gives `logits`, float32 (batch, K).
    The network itself is left untouched, modes included.

    Args:
        net: its first layer normalises, so that the graph takes images in [0, 1].
        shape: (C, H, W) of one image.
        path: the file to write.

    Raises:
        Incompatible: parametrisations are attached, or the exporter cannot express the network.
        CannotCreate: the file cannot be written.
    """
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module):
            raise Incompatible(
                f"export: {name or 'the network'} has parametrisations attached; "
                "bake the masks into the weights first"
            )
    frozen = copy.deepcopy(net).cpu().eval()
    # A batch of one or none would be taken for a constant.
    example = torch.zeros(2, *shape)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        program = torch.onnx.export(
            frozen,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,  # the exporter's progress lines would end up in --json output
        )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise Incompatible(
            f"export: {type(net).__name__} cannot be turned into ONNX ({cause}); "
            "remove what depends on the values or on the batch size from its forward"
        ) from error
    assert program is not None
    model: ModelProto = program.model_proto
    _pool_globally(model)
    graph.drop_unused_constants(model)
    del model.metadata_props[:]
    graph.set_metadata(model, {"precision": "fp32", "input": "float32 NCHW"})
    graph.save(model, path)


def _pool_globally(model: ModelProto) -> None:
    """Write a mean over both image axes as GlobalAveragePool, which quantisers and engines know.

    PyTorch's adaptive pooling to one pixel arrives as ReduceMean, and ONNX Runtime has no 8-bit
    kernel for that.
    """
    constants = graph.constants(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.input)
    }
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if not _averages_pixels(node, constants, ranks):
            nodes.append(node)
            continue
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        source, result = node.input[0], node.output[0]
        if settings.get("keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", [source], [result], node.name))
        else:
            pooled = f"{result}_pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [source], [pooled], node.name))
            nodes.append(helper.make_node("Flatten", [pooled], [result], f"{node.name}_flatten"))
    graph.put_nodes(model, nodes)


def _averages_pixels(node: NodeProto, constants: dict[str, NDArray], ranks: dict[str, int]) -> bool:
    """Whether the node is a mean over exactly the last two axes of (N, C, H, W)."""
    if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or len(node.input) < 2:
        return False
    axes = constants.get(node.input[1])
    return axes is not None and sorted(axis % 4 for axis in axes.tolist()) == [2, 3]
