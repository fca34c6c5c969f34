"""How large every tensor of a graph gets, for any number of images at once, without running it.

Each node is inferred for a few sizes of batch. That tells of all the others because every size
grows with the batch: numbers that come from it are only picked, joined and multiplied by positive
constants on their way to a shape. What computes with them in another way could be small where it is
looked at and huge elsewhere, so such a graph cannot be told and is refused.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from deploy import graph_numbers
from deploy.graph_numbers import Dims, Series, grows
from deploy.graph_tensors import MOST_AXES
from deploy.graph_wire import TYPES, Hostile
from deploy.runtime import LARGEST_CHUNK

BATCHES = (1, 32, LARGEST_CHUNK)
LARGEST_IMAGE = 2**30  # bytes of all that is kept at one time, for each image

_LOGITS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
# Which input of a convolution is its kernel.
_KERNELS = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
# Inputs that make the result larger as they grow; elsewhere a size that grows makes none.
_GROWS = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Range", 1)}


class _Tensor(NamedTuple):
    """What is known of a tensor, for each of `BATCHES`."""

    types: tuple[TypeProto, ...]
    dims: tuple[Dims, ...]
    values: Series | None = None
    constant: bool = False  # computed from nothing that is given at run time

    @property
    def depends(self) -> bool:
        """Whether the size of the batch makes a difference to what is known."""
        return len(set(self.dims)) > 1 or (self.values is not None and grows(self.values))

    def nbytes(self, probe: int) -> int:
        return math.prod(self.dims[probe]) * TYPES[self.types[0].tensor_type.elem_type].itemsize


Known = dict[str, _Tensor]


def check_sizes(model: ModelProto, opset: int) -> None:
    """Hold a graph to images in, logits out, and a bounded amount of memory for each image.

    Args:
        model: only of `graph_operators.OPERATORS`; its large constants may lack their values.
        opset: of the standard operators.

    Raises:
        Hostile: in one line, which node asks for how much, or why it cannot be told.
    """
    graph = model.graph
    known = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    # Runtimes compute once, and keep, what depends on constants alone: weights of another type.
    spare = 8 * sum(tensor.nbytes(0) for tensor in known.values())
    taken = [value for value in graph.input if value.name not in known]
    if len(taken) != 1 or len(graph.output) != 1:
        raise Hostile(
            f"{len(taken)} inputs and {len(graph.output)} outputs; need one input, images, and one "
            "output, logits"
        )
    name, result = taken[0].name, graph.output[0].name
    known[name] = _images(taken[0].type)
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last[result] = len(graph.node)
    kept, room = {name}, [known[name].nbytes(probe) for probe in range(len(BATCHES))]
    for index, node in enumerate(graph.node):
        missing = [name for name in node.input if name and name not in known]
        if missing:
            raise Hostile(f"{named(node)} reads {missing[0][:60]!a}, which nothing computes first")
        made = _made(node, known, opset, model.ir_version)
        known |= made
        kept |= {name for name, tensor in made.items() if not tensor.constant}
        room = [sum((x.nbytes(i) for x in made.values()), total) for i, total in enumerate(room)]
        _check_room(node, room, known, spare)
        for name in {*node.input, *node.output} & kept:
            if last.get(name, index) <= index:
                kept.remove(name)
                room = [total - known[name].nbytes(i) for i, total in enumerate(room)]
    _check_logits(known, result)


def named(node: NodeProto) -> str:
    """A node by its operator and name, which may be of any length and hold any character."""
    name = node.name or next(iter(node.output), "")
    kind = f"{node.domain}.{node.op_type}".lstrip(".")
    return f"{ascii(kind[:60])[1:-1]} {name[:60]!a}"


def _images(kind: TypeProto) -> _Tensor:
    element, dims = kind.tensor_type.elem_type, kind.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims]
    fits = len(sizes) == 4 and not dims[0].HasField("dim_value") and min(sizes[1:]) > 0
    if not fits or element not in (TensorProto.FLOAT, TensorProto.UINT8):
        shown = [dim.dim_value if dim.HasField("dim_value") else "free" for dim in dims[:8]]
        raise Hostile(
            f"takes type {element} of shape {shown}; need one input, float32 (batch, C, H, W) or "
            "uint8 (batch, H, W, C) of fixed size and free batch"
        )
    shapes = tuple((batch, *sizes[1:]) for batch in BATCHES)
    return _Tensor(tuple(helper.make_tensor_type_proto(element, x) for x in shapes), shapes)


def _check_logits(known: Known, result: str) -> None:
    if result not in known:
        raise Hostile(f"gives {result[:60]!a}, which nothing computes")
    kind, shapes = known[result].types[0].tensor_type.elem_type, known[result].dims
    classes = shapes[0][-1] if shapes[0] else 0
    if shapes != tuple((batch, classes) for batch in BATCHES) or kind not in _LOGITS or not classes:
        given = f"type {kind} of shape {_shown(known[result])}"
        raise Hostile(f"gives {given}; need logits, float (batch, classes)")


def _constant(tensor: TensorProto) -> _Tensor:
    count, values = len(BATCHES), graph_numbers.array(tensor)
    kind = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    series = None if values is None else (values,) * count
    return _Tensor((kind,) * count, (tuple(tensor.dims),) * count, series, constant=True)


def _made(node: NodeProto, known: Known, opset: int, ir_version: int) -> Known:
    """What a node gives."""
    inputs = [known[name] if name else None for name in node.input]
    given = [x for x in inputs if x is not None]
    # A shape whose numbers fall, as the batch grows, or do both, is not looked at.
    data = {
        name: x.values
        for i, (name, x) in enumerate(zip(node.input, inputs, strict=True))
        if x and x.values and (not grows(x.values) or _may_grow(node.op_type, i, inputs))
    }
    schema = onnx.defs.get_schema(node.op_type, opset)
    found: list[dict[str, TypeProto]] = []
    # Nodes that the batch makes no difference to are asked once.
    for probe in range(len(BATCHES) if any(x.depends for x in given) else 1):
        types = {name: known[name].types[probe] for name in node.input if name}
        values = {name: numpy_helper.from_array(x[probe], name) for name, x in data.items()}
        opsets = [helper.make_opsetid("", opset)]
        try:
            found.append(
                infer_node_outputs(
                    schema, node, types, values, opset_imports=opsets, ir_version=ir_version
                )
            )
        except (InferenceError, ValidationError) as error:
            raise _cannot(node, error) from error
    found *= len(BATCHES) // len(found)
    constant = all(x.constant for x in given)
    made = {}
    for name in filter(None, node.output):
        kinds = tuple(types.get(name, TypeProto()) for types in found)
        made[name] = _Tensor(kinds, tuple(_dims(x, node) for x in kinds), None, constant)
    _check_growth(node, given, [*made.values()])
    if len(made) == 1 and opset >= graph_numbers.OLDEST_OPSET:
        ((name, only),) = made.items()
        made[name] = only._replace(values=_numbers(node, inputs, only))
    return made


def _may_grow(kind: str, index: int, inputs: Sequence[_Tensor | None]) -> bool:
    if (kind, index) not in _GROWS:
        return False
    step = inputs[2] if kind == "Range" else None  # backwards, a larger end makes fewer
    return kind != "Range" or bool(step and step.values and (step.values[0] > 0).all())


def _numbers(node: NodeProto, inputs: Sequence[_Tensor | None], result: _Tensor) -> Series | None:
    if math.prod(result.dims[-1]) > graph_numbers.MOST:
        return None
    if node.op_type == "Shape":
        ends = {item.name: item.i for item in node.attribute}
        part = slice(ends.get("start"), ends.get("end"))
        return tuple(
            np.array(x[part], np.int64) for tensor in inputs if tensor for x in tensor.dims
        )
    try:
        values = [x.values if x else None for x in inputs]
        return graph_numbers.computed(node, values, result.dims)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise _cannot(node, error) from error


def _dims(kind: TypeProto, node: NodeProto) -> Dims:
    tensor = kind.tensor_type
    if tensor.elem_type not in TYPES:
        raise Hostile(f"{named(node)} gives values of type {tensor.elem_type}")
    shape = tensor.shape.dim
    if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in shape):
        raise Hostile(f"{named(node)} gives a size that cannot be told before it runs")
    dims = tuple(dim.dim_value for dim in shape)
    if min(dims, default=0) < 0 or len(dims) > MOST_AXES:
        raise Hostile(f"{named(node)} gives {len(dims)} axes of sizes {[*dims[:8]]}")
    return dims


def _check_growth(node: NodeProto, given: Sequence[_Tensor], made: Sequence[_Tensor]) -> None:
    """Hold a node to results whose every size is the same for all batches, or grows with them."""
    for result in made:
        if len({len(dims) for dims in result.dims}) > 1:
            raise Hostile(f"{named(node)} gives {_shown(result)} for {BATCHES} images")
        growing = [sizes for sizes in zip(*result.dims, strict=True) if len(set(sizes)) > 1]
        if any(list(sizes) != sorted(sizes) or sizes[0] < 1 for sizes in growing):
            raise Hostile(f"{named(node)} gives {_shown(result)} for {BATCHES} images")
        if node.op_type == "Reshape":
            same = [math.prod(x) for x in given[0].dims] == [math.prod(x) for x in result.dims]
            if not same or len(growing) > 1:
                raise Hostile(f"{named(node)} makes {_shown(result)} of {_shown(given[0])}")
        if node.op_type in ("Slice", "Split"):
            before = zip(*given[0].dims, strict=True)
            after = zip(*result.dims, strict=True)
            if any(len(set(x)) > 1 and x != y for x, y in zip(before, after, strict=True)):
                raise Hostile(f"{named(node)} takes a part of the batch")


def _check_room(node: NodeProto, room: Sequence[int], known: Known, spare: int) -> None:
    """Bound what is there while a node runs, room to lay out the patches of a convolution too."""
    for probe, (batch, total) in enumerate(zip(BATCHES, room, strict=True)):
        if node.op_type in _KERNELS:
            kernel = known[node.input[_KERNELS[node.op_type]]].dims[probe]
            place = node.input if node.op_type == "ConvTranspose" else node.output
            total += 4 * math.prod(kernel[1:]) * math.prod(known[place[0]].dims[probe][2:])
        if total > batch * LARGEST_IMAGE + spare:
            raise Hostile(
                f"{named(node)} asks for {total / 2**30:,.1f} GiB for {batch} images, above "
                f"{LARGEST_IMAGE / 2**30:g} for each"
            )


def _shown(tensor: _Tensor) -> str:
    return " or ".join(dict.fromkeys(str([*dims[:8]]) for dims in tensor.dims))


def _cannot(node: NodeProto, error: Exception) -> Hostile:
    reason = ascii(" ".join(str(error).split()))[1:200].rstrip("'")
    return Hostile(f"{named(node)} cannot be computed ({reason})")
