"""ONNX graphs as plain data: read, index, strip, label, write.

A file that ships says what it computes and nothing about the machine that made it: exporters leave
stack traces, source lines and absolute paths behind, and `save` removes them all.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from advprune.errors import BadData, CannotCreate, NotFound

_ROUNDING = {"QuantizeLinear", "DequantizeLinear"}


def load(path: Path) -> ModelProto:
    """The graph in a file that holds all of its weights.

    Raises:
        NotFound: no such file.
        BadData: the file is no valid ONNX graph, it rounds in steps that are not finite or not
            above 0, or it names weights in other files: those are outside its digest, and reading
            them would follow paths that a stranger chose.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file; export the network first") from error
    try:
        model = onnx.load_model_from_string(data)
        tensors = _tensors(model.graph)
        if any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in tensors):
            raise BadData(f"{path}: weights lie in another file; export with external_data=False")
        if model.functions or model.training_info:
            raise BadData(f"{path}: functions or a training step of its own; export it again")
        onnx.checker.check_model(model)
        _check_scales(model, path)
    # A ValueError, where data do not fit their sizes, or a name is none that can be read.
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{path}: not a valid ONNX model ({reason}); export it again") from error
    return model


def _check_scales(model: ModelProto, path: Path) -> None:
    values = constants(model)
    for node in model.graph.node:
        if node.op_type in _ROUNDING and node.input[1] in values:
            scale = values[node.input[1]]
            if not (np.isfinite(scale) & (scale > 0)).all():
                odd = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
                raise BadData(
                    f"{path}: scale {node.input[1]} of {node.name!r} is {odd:g}; engines divide by "
                    "it, so quantise again"
                )


def _tensors(body: GraphProto) -> Iterator[TensorProto]:
    """All of a graph, also sparse ones and those of graphs in its nodes."""
    yield from body.initializer
    attributes = [item for node in body.node for item in node.attribute]
    for item in attributes:
        yield from (item.t, *item.tensors)
        for nested in (item.g, *item.graphs):
            yield from _tensors(nested)
    sparse = [*body.sparse_initializer]
    for item in attributes:
        sparse += [item.sparse_tensor, *item.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def save(model: ModelProto, path: Path) -> None:
    """Check and write: the same graph always gives the same bytes, free of paths and doc strings.

    Raises:
        BadData: the graph is not valid ONNX, or a scale is not finite or not above 0.
        CannotCreate: the file cannot be written.
    """
    strip(model)
    _check_scales(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BadData(f"{path}: the graph is not valid ONNX: {error}") from error
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise CannotCreate(f"{path}: {error.strerror}; is its folder writable?") from error


def strip(model: ModelProto) -> None:
    """Remove where the graph came from, keep what it is. Model-level metadata stays."""
    model.producer_name = "advprune"
    model.producer_version = ""
    model.domain = ""
    graph = model.graph
    for element in (model, graph, *graph.node, *graph.initializer):
        element.doc_string = ""
    for element in (graph, *graph.node, *graph.initializer):
        del element.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    # Shapes inside the graph follow from its ends; a stale one only misleads.
    del graph.value_info[:]


def set_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Write entries (labels, precision, ...) into the model, over entries of the same name.

    Every runtime hands them out again, so a deployed file can say what it is.
    """
    merged = {entry.key: entry.value for entry in model.metadata_props} | dict(entries)
    del model.metadata_props[:]
    for key, value in sorted(merged.items()):
        model.metadata_props.add(key=key, value=value)


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """Tensor name -> the node that computes it."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Tensor name -> the nodes that read it; a tensor that nothing reads has no entry."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def constants(model: ModelProto) -> dict[str, NDArray]:
    """Initializer name -> its values."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def put_constants(model: ModelProto, values: Mapping[str, NDArray]) -> None:
    """Overwrite initializers in place and append those that are new."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        tensor = numpy_helper.from_array(value, name)
        if name in known:
            known[name].CopyFrom(tensor)
        else:
            model.graph.initializer.append(tensor)


def put_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Replace all nodes of the graph, each moved behind those whose results it reads."""
    waiting = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    pending = {name for node in waiting for name in node.output}
    ordered: list[NodeProto] = []
    while waiting:
        ready = [pending.isdisjoint(node.input) for node in waiting]
        assert any(ready), "the graph has a cycle"
        movable = list(itertools.compress(waiting, ready))
        waiting = [node for node, is_ready in zip(waiting, ready, strict=True) if not is_ready]
        pending -= {name for node in movable for name in node.output}
        ordered += movable
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def drop_unused_constants(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    fresh = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(fresh)


def quantisation_nodes(model: ModelProto) -> int:
    """How many nodes quantise or dequantise: 0 says that the graph is float."""
    return sum(node.op_type in _ROUNDING for node in model.graph.node)


def activation_types(model: ModelProto) -> set[str]:
    """Types of codes that the graph rounds to: {"int8"} in the TensorRT form."""
    zeros = constants(model)
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    # Without a zero point the standard takes uint8.
    return {str(zeros[n.input[2]].dtype) if len(n.input) > 2 else "uint8" for n in quantisers}
