"""What is in an ONNX file, found out before a runtime gets it. Needs numpy and onnx.

Runtimes trust a graph: they read the files that it names, run operators of any library they were
given, take weights that are no numbers and make tensors of any size. So a graph passes that turns
images into logits by standard operators, whole in its file, in memory that can be told beforehand.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from deploy.errors import DeployError
from deploy.graph_sizes import OPERATORS, TooLarge, check_sizes, said
from deploy.graph_wire import TYPES, Malformed, Where, lean

DOMAINS = ("", "ai.onnx")
FORMATS = range(3, onnx.IR_VERSION + 1)
OPSETS = range(7, 27)  # what runtimes promise to know
MOST_NODES = 20_000
_SMALL = 1024  # bytes of a constant that may say how large something is
_CHUNK = 2**20  # values looked at together
# Which field of a tensor holds values of which types, where they are not raw.
_FIELDS = {
    "float_data": {TensorProto.FLOAT},
    "double_data": {TensorProto.DOUBLE},
    "int64_data": {TensorProto.INT64},
    "uint64_data": {TensorProto.UINT32, TensorProto.UINT64},
    "int32_data": {
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
        *(TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    },
}
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
    except _Unknown as error:
        raise DeployError(f"{origin}: {error}; export with standard operators", 78) from error
    except Malformed as error:
        raise DeployError(f"{origin}: not an ONNX file ({error}); export it again", 65) from error
    except (_Hostile, TooLarge) as error:
        raise DeployError(f"{origin}: {error}; export it again", 65) from error


class _Hostile(Exception):
    """Something that must not be in a graph."""


class _Unknown(Exception):
    """Something that other software may know."""


def _check(data: bytes) -> None:
    for magic, kind in _OTHER_FORMATS.items():
        _demand(data[4:8] != magic, f"{kind} file, not an ONNX file")
    model = lean(data)
    graph = model.graph
    if not graph.node:
        raise Malformed("it has no nodes")
    opset = _opset(model)
    _demand(not model.functions, "functions of its own")
    _demand(not model.training_info, "a training step of its own")
    _demand(not graph.sparse_initializer, "sparse weights")
    _demand(len(graph.node) <= MOST_NODES, f"{len(graph.node)} nodes, above {MOST_NODES}")
    _check_operators(graph, opset)
    _check_names(graph)
    constants: dict[str, NDArray[Any]] = {}
    for name, tensor in _tensors(graph):
        values = _values(tensor, name, data)
        _check_finite(values, tensor.data_type, name)
        _settle(tensor, values)
        constants[name] = values
    _check_steps(graph, constants)
    check_sizes(model, opset)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Hostile(otherwise)


def _shown(name: str) -> str:
    """A name from the file, which may be of any length and hold any character."""
    return ascii(name if len(name) <= 60 else f"{name[:60]}...")


def _listed(names: Iterable[str]) -> str:
    """The first few."""
    found = [*dict.fromkeys(names)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _opset(model: ModelProto) -> int:
    """The version of the standard operators that the graph is written in."""
    if model.ir_version not in FORMATS:
        raise _Unknown(f"format {model.ir_version}, other than {FORMATS[0]} to {FORMATS[-1]}")
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    _demand(len(versions) == 1, f"{len(versions)} versions of the standard operators")
    if versions[0] not in OPSETS:
        raise _Unknown(f"opset {versions[0]}, other than {OPSETS[0]} to {OPSETS[-1]}")
    return versions[0]


def _check_operators(graph: GraphProto, opset: int) -> None:
    foreign = [node for node in graph.node if node.domain not in DOMAINS]
    if foreign:
        raise _Unknown(f"operators of another library: {_listed(map(said, foreign))}")
    for node in graph.node:
        for item in node.attribute:
            nested = item.HasField("g") or item.graphs
            _demand(not nested, f"{said(node)} holds a graph of its own")
            sparse = item.HasField("sparse_tensor") or item.sparse_tensors
            _demand(not sparse, f"{said(node)} holds sparse values")
            _demand(not item.ref_attr_name, f"{said(node)} has an attribute of a function")
    unknown = [
        node
        for node in graph.node
        if node.op_type not in OPERATORS or not onnx.defs.has(node.op_type, opset)
    ]
    if unknown:
        raise _Unknown(f"unknown operators in opset {opset}: {_listed(map(said, unknown))}")


def _check_names(graph: GraphProto) -> None:
    """Every name means one thing: where two do, it is the runtime's choice which."""
    weights = [tensor.name for tensor in graph.initializer]
    _demand(all(weights), "a weight without a name")
    known = set(weights)
    made = [value.name for value in graph.input if value.name not in known]
    made += weights + [name for node in graph.node for name in node.output if name]
    nodes = [node.name for node in graph.node if node.name]
    for kind, names in (("tensors", made), ("nodes", nodes)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        _demand(not twice, f"two {kind} of one name: {_listed(map(_shown, twice))}")


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
        _demand(math.isfinite(value), f"{said(node)}: {_shown(item.name)} is not finite")


def _values(tensor: TensorProto, name: str, data: bytes) -> NDArray[Any]:
    """All values of a tensor in a row, without a copy where they are most of the file.

    bfloat16 comes as uint16.
    """
    where, said = Where.of(tensor), _shown(name)
    outside = tensor.data_location != TensorProto.DEFAULT or tensor.external_data
    _demand(not outside, f"{said} lies in another file")
    if tensor.data_type not in TYPES:
        kinds = {number: kind for kind, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise _Unknown(f"{said} holds values of type {kind}")
    kind, dims = TYPES[tensor.data_type], [*tensor.dims]
    _demand(min(dims, default=0) >= 0, f"{said} is of negative size {dims}")
    count = math.prod(dims)
    kept = [key for key in (*_FIELDS, "string_data") if len(getattr(tensor, key))]
    _demand(len(kept) + (where is not None) <= 1, f"{said} says its values twice")
    if where is not None:
        fields = {4: TensorProto.FLOAT, 9: tensor.data_type, 10: TensorProto.DOUBLE}
        _demand(fields[where.field] == tensor.data_type, f"{said} has values of another type")
        fits = where.size == count * kind.itemsize
        _demand(fits, f"{said} of shape {dims[:8]} has {where.size} bytes of {kind.name}")
        return np.frombuffer(data, kind, count, where.start) if count else np.empty(0, kind)
    if not kept:
        _demand(count == 0, f"{said} of shape {dims[:8]} has no values")
        return np.empty(0, kind)
    _demand(tensor.data_type in _FIELDS.get(kept[0], ()), f"{said} has values of another type")
    stored = getattr(tensor, kept[0])
    _demand(len(stored) == count, f"{said} of shape {dims[:8]} has {len(stored)} values")
    if kept[0] != "int32_data" or tensor.data_type == TensorProto.INT32:
        return np.fromiter(stored, kind, count)
    # The bits of a smaller type, in the low end of 32.
    return np.fromiter(stored, "<i4", count).astype(f"<u{kind.itemsize}").view(kind)


def _check_finite(values: NDArray[Any], kind: int, name: str) -> None:
    if values.dtype.kind != "f" and kind != TensorProto.BFLOAT16:
        return
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        # In 16 bits of a float32, exponents of all ones stand for what is no number.
        odd = part & 0x7F80 == 0x7F80 if kind == TensorProto.BFLOAT16 else ~np.isfinite(part)
        if odd.any():
            index = start + int(odd.argmax())
            raise _Hostile(f"{_shown(name)} is not finite: value {index} of {len(values)}")


def _settle(tensor: TensorProto, values: NDArray[Any]) -> None:
    """Give a small tensor its values back, which may be a shape, and take those of any other."""
    for field in (*_FIELDS, "raw_data"):
        tensor.ClearField(field)
    if values.nbytes <= _SMALL:
        tensor.raw_data = values.tobytes()


def _check_steps(graph: GraphProto, constants: dict[str, NDArray[Any]]) -> None:
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for index in _STEPS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            _demand(name in constants, f"{said(node)} rounds in steps that are computed")
            steps = constants[name]
            if kinds.get(name) == TensorProto.BFLOAT16:  # sign bit clear, not all zero
                above = (steps > 0) & (steps < 0x8000)
            else:
                above = steps > 0
            odd = f"{said(node)} rounds in steps {_shown(name)} that are not above 0"
            _demand(bool(len(steps)) and bool(above.all()), odd)
