"""What is in an ONNX file, found out before a runtime gets it. Needs numpy and onnx.

Runtimes trust a graph: they read the files that it names, run operators of any library they were
given, take weights that are no numbers and make tensors of any size. So a graph passes that turns
images into logits by standard operators, whole in its file, in memory that can be told beforehand.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from deploy.errors import DeployError
from deploy.graph_operators import OPERATORS
from deploy.graph_sizes import check_sizes, named
from deploy.graph_tensors import check_finite, demand, settle, shown, values_of
from deploy.graph_wire import Hostile, Malformed, Unknown, lean

DOMAINS = ("", "ai.onnx")
FORMATS = range(3, onnx.IR_VERSION + 1)
OPSETS = range(7, 27)  # what runtimes promise to know
MOST_NODES = 10_000
# Inputs that are steps of rounding.
_STEPS = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
}
# Two kinds of flatbuffers, by which runtimes know files that are no ONNX, whatever else they are.
_OTHER_FORMATS = {b"ORTM": "onnxruntime's own", b"TFL3": "a TFLite"}


def check_graph(data: bytes, origin: str) -> None:
    """Let through a graph from images to logits that a runtime can be trusted with.

    Takes little memory beside `data` itself, whatever that says.

    Args:
        data: a whole ONNX file.
        origin: its name, for messages.

    Raises:
        DeployError: 65, naming what is in it that must not be; 78, naming domains, operators or an
            opset that are not known.
    """
    try:
        _check(data)
    except Unknown as error:
        raise DeployError(f"{origin}: {error}; export with standard operators", 78) from error
    except Malformed as error:
        raise DeployError(f"{origin}: not an ONNX file ({error}); export it again", 65) from error
    except Hostile as error:
        raise DeployError(f"{origin}: {error}; export it again", 65) from error


def _check(data: bytes) -> None:
    for magic, kind in _OTHER_FORMATS.items():
        demand(data[4:8] != magic, f"{kind} file, not an ONNX file")
    model = lean(data)
    graph = model.graph
    if not graph.node:
        raise Malformed("it has no nodes")
    opset = _opset(model)
    demand(not model.functions, "functions of its own")
    demand(not model.training_info, "a training step of its own")
    demand(not graph.sparse_initializer, "sparse weights")
    demand(len(graph.node) <= MOST_NODES, f"{len(graph.node)} nodes, above {MOST_NODES}")
    _check_operators(graph, opset)
    _check_names(graph)
    constants: dict[str, tuple[int, NDArray[Any]]] = {}
    for name, tensor in _tensors(graph):
        values = values_of(tensor, name, data)
        check_finite(values, tensor.data_type, name)
        settle(tensor, values)
        constants[name] = tensor.data_type, values
    _check_steps(graph, constants)
    check_sizes(model, opset)


def _listed(names: Iterable[str]) -> str:
    """The first few."""
    found = [*dict.fromkeys(names)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _opset(model: ModelProto) -> int:
    """The version of the standard operators that the graph is written in."""
    if model.ir_version not in FORMATS:
        raise Unknown(f"format {model.ir_version}, other than {FORMATS[0]} to {FORMATS[-1]}")
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    demand(len(versions) == 1, f"{len(versions)} versions of the standard operators")
    if versions[0] not in OPSETS:
        raise Unknown(f"opset {versions[0]}, other than {OPSETS[0]} to {OPSETS[-1]}")
    return versions[0]


def _check_operators(graph: GraphProto, opset: int) -> None:
    foreign = [node for node in graph.node if node.domain not in DOMAINS]
    if foreign:
        raise Unknown(f"operators of another library: {_listed(map(named, foreign))}")
    for node in graph.node:
        for item in node.attribute:
            nested = item.HasField("g") or item.graphs
            demand(not nested, f"{named(node)} holds a graph of its own")
            sparse = item.HasField("sparse_tensor") or item.sparse_tensors
            demand(not sparse, f"{named(node)} holds sparse values")
            demand(not item.ref_attr_name, f"{named(node)} has an attribute of a function")
    unknown = [
        node
        for node in graph.node
        if node.op_type not in OPERATORS or not onnx.defs.has(node.op_type, opset)
    ]
    if unknown:
        raise Unknown(f"unknown operators in opset {opset}: {_listed(map(named, unknown))}")


def _check_names(graph: GraphProto) -> None:
    """Every name means one thing: where two do, it is the runtime's choice which."""
    weights = [tensor.name for tensor in graph.initializer]
    demand(all(weights), "a weight without a name")
    known = set(weights)
    made = [value.name for value in graph.input if value.name not in known]
    made += weights + [name for node in graph.node for name in node.output if name]
    nodes = [node.name for node in graph.node if node.name]
    for kind, names in (("tensors", made), ("nodes", nodes)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        demand(not twice, f"two {kind} of one name: {_listed(map(shown, twice))}")


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Everything with values, by the name under which a node reads it."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        name = node.output[0] if node.output else node.name
        for item in node.attribute:
            _check_attribute(node, item)
            if item.HasField("t"):
                yield name, item.t
            for tensor in item.tensors:
                yield f"{name} {item.name}", tensor


def _check_attribute(node: NodeProto, item: AttributeProto) -> None:
    for value in (item.f, *item.floats):
        demand(math.isfinite(value), f"{named(node)}: {shown(item.name)} is not finite")


def _check_steps(graph: GraphProto, constants: Mapping[str, tuple[int, NDArray[Any]]]) -> None:
    for node in graph.node:
        for index in _STEPS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            demand(name in constants, f"{named(node)} rounds in steps that are computed")
            kind, steps = constants[name]
            # Of bfloat16 there are the bits, of which the first is the sign.
            largest = 0x7FFF if kind == TensorProto.BFLOAT16 else np.inf
            above = bool(len(steps)) and bool(((steps > 0) & (steps <= largest)).all())
            demand(above, f"{named(node)} rounds in steps {shown(name)} that are not above 0")
