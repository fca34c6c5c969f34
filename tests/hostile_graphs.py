"""What a stranger writes into an ONNX file, by what is wrong with it: bytes, exit code, words."""

import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

SHAPE, CLASSES = (1, 4, 4), 3
PIXELS = 16
WEIGHTS = np.linspace(-1, 1, PIXELS * CLASSES, dtype=np.float32).reshape(PIXELS, CLASSES)
FREE = ("batch", *SHAPE)


class Case(NamedTuple):
    make: Callable[[], bytes]
    code: int
    words: str


def node(kind: str, inputs: str, outputs: str, **settings: Any) -> NodeProto:
    """Inputs and outputs as words."""
    return helper.make_node(kind, inputs.split(" "), outputs.split(" "), **settings)


def value(name: str, kind: int, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def numbers(name: str, *values: Any, kind: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def classifier(
    nodes: Sequence[NodeProto] = (),
    weights: Sequence[TensorProto] = (),
    change: Callable[[ModelProto], object] = lambda model: None,
    opset: int = 20,
) -> bytes:
    """A sound file of two nodes, `pixels @ weights -> logits`, and what else is in it."""
    graph = helper.make_graph(
        [
            node("Flatten", "images", "pixels"),
            node("MatMul", "pixels weights", "logits"),
            *nodes,
        ],
        "g",
        [value("images", TensorProto.FLOAT, FREE)],
        [value("logits", TensorProto.FLOAT, ("batch", CLASSES))],
        [numpy_helper.from_array(WEIGHTS, "weights"), *weights],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    change(model)
    return model.SerializeToString()


def ending(nodes: Sequence[NodeProto], weights: Sequence[TensorProto] = ()) -> bytes:
    """What nodes make of `images` and `x`, the product, is summed up and added to the logits."""

    def change(model: ModelProto) -> None:
        first, product = model.graph.node[:2]
        product.output[0] = "x"
        rest = [
            node("ReduceSum", "made", "sum", keepdims=0),
            node("Add", "x sum", "logits"),
        ]
        del model.graph.node[:]
        model.graph.node.extend([first, product, *nodes, *rest])

    return classifier((), weights, change)


def outside(tensor: TensorProto, location: str = "secret.bin") -> TensorProto:
    """The same tensor, but that its values are said to lie in a file."""
    tensor = TensorProto.FromString(tensor.SerializeToString())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_weights(tensor: TensorProto) -> bytes:
    """The classifier with other weights."""
    tensor = TensorProto.FromString(tensor.SerializeToString())
    tensor.name = "weights"
    return classifier(change=lambda model: model.graph.initializer[0].CopyFrom(tensor))


def _unused(constant: TensorProto) -> bytes:
    return classifier([], [constant])


def _constant(**settings: Any) -> bytes:
    return classifier([helper.make_node("Constant", [], ["c"], "odd", **settings)])


def _body(tensor: TensorProto) -> GraphProto:
    return helper.make_graph(
        [node("Identity", "inner", "y")], "body", [], [value("y", 1, [])], [tensor]
    )


def _branch(tensor: TensorProto) -> bytes:
    body = _body(tensor)
    settings: dict[str, Any] = {"then_branch": body, "else_branch": body}
    yes = numbers("yes", True, kind=bool)
    return classifier([helper.make_node("If", ["yes"], ["z"], "fork", **settings)], [yes])


def _sparse() -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        outside(numbers("values", 1.0, kind=np.float32)), numbers("indices", 0), [4]
    )


def _function(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20)]
    inner = [node("Relu", "a", "b")]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))


def _training(model: ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(_body(numbers("inner", 1.0)))


def _opsets(*versions: int) -> bytes:
    def change(model: ModelProto) -> None:
        del model.opset_import[:]
        for domain, version in zip(("", "ai.onnx"), versions, strict=False):
            model.opset_import.append(helper.make_opsetid(domain, version))

    return classifier(change=change)


def _as(kind: int, values: Sequence[Any], dims: Sequence[int] | None = None) -> TensorProto:
    """A tensor with its values in the field for its type."""
    return helper.make_tensor("odd", kind, dims or [len(values)], values)


def _raw(kind: int, dims: Sequence[int], data: bytes) -> TensorProto:
    return TensorProto(name="odd", data_type=kind, dims=dims, raw_data=data)


def _bits(kind: int, *values: int) -> TensorProto:
    return TensorProto(name="odd", data_type=kind, dims=[len(values)], int32_data=values)


def _twice() -> TensorProto:
    tensor = _as(TensorProto.FLOAT, [1.0, 2.0])
    tensor.raw_data = bytes(8)
    return tensor


def _rounding(scale: TensorProto) -> bytes:
    scale = TensorProto.FromString(scale.SerializeToString())
    scale.name, scale.dims[:] = "scale", []
    kept = node("QuantizeLinear", "images scale", "codes")
    return ending([kept, node("DequantizeLinear", "codes scale", "made")], [scale])


def _computed_scale() -> bytes:
    top = node("ReduceMax", "images", "top", keepdims=0)
    return ending([top, node("QuantizeLinear", "images top", "c"), node("Cast", "c", "made", to=1)])


def _form(
    images: Sequence[Any] = FREE, kind: int = TensorProto.FLOAT, logits: NodeProto | None = None
) -> bytes:
    def change(model: ModelProto) -> None:
        model.graph.input[0].CopyFrom(value("images", kind, images))
        if logits is not None:
            model.graph.node[1].output[0] = "x"
            model.graph.node.append(logits)
            model.graph.output[0].type.tensor_type.ClearField("shape")

    return classifier(change=change)


def _more_input(model: ModelProto) -> None:
    model.graph.input.append(value("more", TensorProto.FLOAT, ("batch", CLASSES)))


def _more_output(model: ModelProto) -> None:
    model.graph.output.append(value("pixels", TensorProto.FLOAT, ("batch", PIXELS)))


def _no_input(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, *SHAPE), "f4"), "images"))


def _reversed(model: ModelProto) -> None:
    turned = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(turned)


def _node_names(model: ModelProto) -> None:
    for item in model.graph.node:
        item.name = "same\nname"


def _large(kind: str, *sizes: TensorProto, more: Sequence[NodeProto] = ()) -> bytes:
    """A node that makes something of the pixels, as large as its other inputs say."""
    names = " ".join(tensor.name for tensor in sizes)
    return ending([*more, node(kind, f"pixels {names}", "made")], sizes)


def _of_shape(*dims: int) -> bytes:
    return ending([node("ConstantOfShape", "shape", "made")], [numbers("shape", *dims)])


def _resize() -> bytes:
    scales = numbers("scales", 1.0, 1.0, 1e5, 1e5, kind=np.float32)
    return ending([helper.make_node("Resize", ["images", "", "scales"], ["made"])], [scales])


def _range() -> bytes:
    ends = [
        numpy_helper.from_array(np.array(n), name)
        for name, n in {"a": 0, "b": 2**40, "c": 1}.items()
    ]
    return ending([node("Range", "a b c", "r"), node("Cast", "r", "made", to=1)], ends)


def _many_constants() -> bytes:
    """Each is allowed; they are all computed before the first image comes."""
    parts = [node("ConstantOfShape", "shape", f"part{i}") for i in range(8)]
    sums = [node("ReduceSum", f"part{i}", f"sum{i}", keepdims=0) for i in range(8)]
    total = node("Sum", " ".join(f"sum{i}" for i in range(8)), "made")
    return ending([*parts, *sums, total], [numbers("shape", 2**26)])


def _patches() -> bytes:
    """Images and kernel of moderate size, whose patches are together 4 TB."""
    kernel = numpy_helper.from_array(np.zeros((1, 1, 1000, 1000), "f4"), "kernel")
    grow = node("Expand", "images shape", "wide")
    fill = node("ReduceMax", "images", "pixel", keepdims=1)
    conv = node("Conv", "wide kernel", "made", pads=[500, 500, 499, 499])
    grow.input[0] = "pixel"
    return ending([fill, grow, conv], [kernel, numbers("shape", 1, 1, 1000, 1000)])


def _square() -> bytes:
    """As many numbers as images, times images: 1 for one, 2**20 for 1024."""
    size = [node("Shape", "images", "n", start=0, end=1), node("Mul", "n n", "nn")]
    return ending([*size, node("ConstantOfShape", "nn", "made")])


def _unless_eight(kind: str = "Equal") -> bytes:
    """Nothing, but for 8 images: then 256 GiB."""
    nodes = [
        node("Shape", "images", "n", start=0, end=1),
        node(kind, "n eight", "hit"),
        node("Cast", "hit", "one", to=TensorProto.INT64),
        node("Mul", "one huge", "size"),
        node("ConstantOfShape", "size", "made"),
    ]
    return ending(nodes, [numbers("eight", 8), numbers("huge", 2**36)])


def _rest_of_division() -> bytes:
    """Nothing for 1, 32 and 1024 images, which all leave 1; 2 leave 2, and 512 GiB."""
    nodes = [
        node("Shape", "images", "n", start=0, end=1),
        node("Div", "n by", "whole"),
        node("Mul", "whole by", "down"),
        node("Sub", "n down", "rest"),
        node("Mul", "rest huge", "size"),
        node("ConstantOfShape", "size", "made"),
    ]
    return ending(nodes, [numbers("by", 31), numbers("huge", 2**36)])


def _rest_of_stride() -> bytes:
    """The same, hidden in a slice of every third image."""
    nodes = [
        node("Slice", "images from to axes steps", "third"),
        node("Shape", "third", "n", start=0, end=1),
        node("Mul", "n huge", "size"),
        node("ConstantOfShape", "size", "made"),
    ]
    ends = [numbers("from", 0), numbers("to", 2**31), numbers("axes", 0), numbers("steps", 3)]
    return ending(nodes, [*ends, numbers("huge", 2)])


def _squeezed() -> bytes:
    """Loses an axis for one image, and none for two."""
    return ending([node("Squeeze", "images", "made")])


def _varint(number: int) -> bytes:
    head = bytearray()
    while number >= 0x80:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*head, number])


def sized(field: int, content: bytes) -> bytes:
    """A field of protobuf: text, a message, or numbers packed."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _graph_with(content: bytes) -> bytes:
    """A file whose graph holds some bytes more: what they repeat is added to it."""
    model = ModelProto.FromString(classifier())
    graph = model.graph.SerializeToString() + content
    model.ClearField("graph")
    return model.SerializeToString() + sized(7, graph)


def _nested(levels: int) -> bytes:
    """A node's attribute holds a graph with a node whose attribute holds a graph ..."""
    content = b""
    for _ in range(levels):
        content = sized(1, sized(5, sized(6, content)))
        if len(content) > 300_000:
            break
    return _graph_with(content)


def _polyglot(magic: bytes) -> bytes:
    """Sound ONNX, in whose name of its producer lies the mark of another format, where it counts.

    Bytes: format 10, two; the name's tag and length, two; then four.
    """
    model = ModelProto.FromString(classifier())
    model.ClearField("ir_version")
    return b"\x08\x0a" + sized(2, magic) + model.SerializeToString()


INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
HALF, BFLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16
NAN, INF = float("nan"), float("inf")
ABOVE = "asks for .* GiB for .* images, above 1 for each"

FILES = {
    "external data beside it": "secret.bin",
    "external data above it": "../secret.bin",
    "external data by a full path": "/etc/passwd",
    "external data behind a link": "link.bin",
    "external data behind a hard link": "hard.bin",
    "external data on a device": "/dev/zero",
}
EXTERNAL: dict[str, Case] = {
    name: Case(
        lambda location=location: with_weights(
            outside(numpy_helper.from_array(WEIGHTS, "weights"), location)
        ),
        65,
        "'weights' lies in another file",
    )
    for name, location in FILES.items()
} | {
    "external data in a node": Case(
        lambda: _constant(value=outside(numbers("v", 1.0))), 65, "'c' lies in another file"
    ),
    "external data in a list in a node": Case(
        lambda: classifier([node("Relu", "x", "y", odd=[outside(numbers("v", 1.0))])]),
        65,
        "'y odd' lies in another file",
    ),
    "external data in a branch": Case(
        lambda: _branch(outside(numbers("inner", 1.0))), 65, "If 'fork' holds a graph of its own"
    ),
    "external data in sparse weights": Case(
        lambda: classifier(change=lambda m: m.graph.sparse_initializer.append(_sparse())),
        65,
        "sparse weights",
    ),
    "external data in a sparse constant": Case(
        lambda: _constant(sparse_value=_sparse()), 65, "Constant 'odd' holds sparse values"
    ),
    "external data that is said not to be": Case(
        lambda: classifier(
            change=lambda m: m.graph.initializer[0].external_data.add(key="location", value="x")
        ),
        65,
        "'weights' lies in another file",
    ),
}
OPERATORS: dict[str, Case] = {
    "an operator of another library": Case(
        lambda: classifier([helper.make_node("Run", ["x"], ["y"], "me", domain="com.evil")]),
        78,
        "operators of another library: com.evil.Run 'me'",
    ),
    "unknown operators": Case(
        lambda: classifier([node("Evil", "logits", f"y{i}") for i in range(9)]),
        78,
        "unknown operators in opset 20: Evil 'y0', .* and 4 more",
    ),
    "an operator of a later opset": Case(
        lambda: classifier([node("Gelu", "pixels", "y")], opset=13),
        78,
        "unknown operators in opset 13: Gelu 'y'",
    ),
    "opset 99": Case(lambda: _opsets(99), 78, "opset 99, other than 7 to 26"),
    "opset 1": Case(lambda: _opsets(1), 78, "opset 1, other than 7 to 26"),
    "no opset": Case(_opsets, 65, "0 versions of the standard operators"),
    "two opsets": Case(lambda: _opsets(20, 13), 65, "2 versions of the standard operators"),
    "a format to come": Case(
        lambda: classifier(change=lambda m: setattr(m, "ir_version", 99)), 78, "format 99, other"
    ),
    "functions": Case(lambda: classifier(change=_function), 65, "functions of its own"),
    "a training step": Case(lambda: classifier(change=_training), 65, "a training step"),
    "a branch": Case(lambda: _branch(numbers("inner", 1.0)), 65, "If 'fork' holds a graph"),
    "a loop": Case(
        lambda: classifier([node("Loop", "a b", "y", body=_body(numbers("inner", 1.0)))]),
        65,
        "Loop 'y' holds a graph",
    ),
    "a scan": Case(
        lambda: classifier([node("Scan", "a", "y", body=_body(numbers("inner", 1.0)))]),
        65,
        "Scan 'y' holds a graph",
    ),
    "a list of graphs": Case(
        lambda: classifier([node("Relu", "pixels", "y", odd=[_body(numbers("inner", 1.0))])]),
        65,
        "Relu 'y' holds a graph",
    ),
    "random numbers": Case(
        lambda: classifier([node("RandomNormalLike", "pixels", "y")]),
        78,
        "unknown operators in opset 20: RandomNormalLike 'y'",
    ),
    "a size that depends on values": Case(
        lambda: classifier([node("NonZero", "pixels", "y")]), 78, "NonZero 'y'"
    ),
    "an attribute that is none": Case(
        lambda: classifier([node("Relu", "pixels", "y", size=2**40)]),
        65,
        "Relu 'y' cannot be computed .*Unrecognized attribute: size",
    ),
}
VALUES: dict[str, Case] = (
    {
        f"weights {name}": Case(lambda tensor=tensor: _unused(tensor), 65, words)
        for name, tensor, words in [
            (
                "NaN",
                _raw(FLOAT, [2], np.array([0, NAN], "<f4").tobytes()),
                "'odd' is not finite: va",
            ),
            ("Inf in a list", _as(FLOAT, [0.0, INF]), "'odd' is not finite: value 1 of 2"),
            (
                "-Inf in doubles",
                _raw(11, [1], np.array([-INF], "<f8").tobytes()),
                "'odd' is not fini",
            ),
            ("NaN in a list of doubles", _as(11, [NAN]), "'odd' is not finite: value 0 of 1"),
            ("NaN in halves", _raw(HALF, [1], b"\x00\x7e"), "'odd' is not finite"),
            ("Inf in a list of halves", _bits(HALF, 0x7C00), "'odd' is not finite"),
            (
                "NaN in bfloat16",
                _raw(BFLOAT, [2], b"\x80\x3f\xc0\x7f"),
                "'odd' is not finite: value 1",
            ),
            (
                "-Inf in a list of bfloat16",
                _bits(BFLOAT, 0x3F80, 0xFF80),
                "'odd' is not finite: val",
            ),
            (
                "of values too few",
                _raw(FLOAT, [2, 2], bytes(12)),
                r"of shape \[2, 2\] has 12 bytes",
            ),
            ("of values too many", _raw(FLOAT, [2], bytes(12)), r"of shape \[2\] has 12 bytes"),
            (
                "of a list too short",
                TensorProto(name="odd", data_type=1, dims=[3], float_data=[1, 2]),
                r"of shape \[3\] has 8 bytes",
            ),
            (
                "of integers too few",
                TensorProto(name="odd", data_type=7, dims=[3], int64_data=[1, 2]),
                r"of shape \[3\] has 2 values",
            ),
            ("of 2 to the 62", _raw(FLOAT, [2**31, 2**31], bytes(8)), "has 8 bytes of float32"),
            ("of a size beyond 64 bits", _raw(FLOAT, [2**62, 2**62, 2**62], b""), "has 0 bytes"),
            (
                "of negative size",
                _raw(FLOAT, [-1, -4], bytes(16)),
                r"has 2 axes of sizes \[-1, -4\]",
            ),
            ("without values", TensorProto(name="odd", data_type=1, dims=[4]), "has no values"),
            ("of a thousand axes", _raw(FLOAT, [1] * 1000, bytes(4)), "has 1000 axes"),
            ("said twice", _twice(), "TensorProto says|says its values twice"),
            (
                "in a field of another type",
                TensorProto(name="odd", data_type=7, dims=[1], float_data=[1]),
                "values of another type",
            ),
            (
                "in a list of another type",
                TensorProto(name="odd", data_type=1, dims=[1], int32_data=[1]),
                "values of another type",
            ),
            (
                "in parts",
                TensorProto(name="odd", data_type=1, segment=TensorProto.Segment(begin=0)),
                "'odd' is a part of another tensor",
            ),
            ("without a name", TensorProto(data_type=1, dims=[0]), "a weight without a name"),
        ]
    }
    | {
        f"weights that are {name}": Case(
            lambda kind=kind: _unused(_raw(kind, [1], bytes(8))), 78, f"holds values of type {word}"
        )
        for name, kind, word in [
            ("complex", TensorProto.COMPLEX64, "COMPLEX64"),
            ("text", TensorProto.STRING, "STRING"),
            ("8-bit floats", TensorProto.FLOAT8E4M3FN, "FLOAT8E4M3FN"),
            ("of no type", 99, "99"),
        ]
    }
    | {
        "a constant NaN": Case(
            lambda: _constant(value=numbers("v", NAN, kind=np.float32)), 65, "'c' is not finite"
        ),
        "a constant number NaN": Case(
            lambda: _constant(value_float=NAN), 65, "Constant 'odd': 'value_float' is not finite"
        ),
        "constant numbers Inf": Case(
            lambda: _constant(value_floats=[0.0, INF]), 65, "'value_floats' is not finite"
        ),
        "an attribute NaN": Case(
            lambda: classifier([node("LeakyRelu", "pixels", "y", alpha=NAN)]),
            65,
            "LeakyRelu 'y': 'alpha' is not finite",
        ),
    }
)
STEPS: dict[str, Case] = {
    f"a scale {name}": Case(lambda tensor=tensor: _rounding(tensor), 65, words)
    for name, tensor, words in [
        ("of 0", _as(FLOAT, [0.0]), "QuantizeLinear 'codes' rounds in steps 'scale' that are not"),
        ("of -1", _as(FLOAT, [-1.0]), "rounds in steps 'scale' that are not above 0"),
        ("NaN", _as(FLOAT, [NAN]), "'scale' is not finite"),
        ("Inf", _as(FLOAT, [INF]), "'scale' is not finite"),
        ("of -1 in bfloat16", _bits(BFLOAT, 0xBF80), "rounds in steps 'scale' that are not above"),
        ("of -0 in bfloat16", _bits(BFLOAT, 0x8000), "rounds in steps 'scale' that are not above"),
    ]
} | {"a scale that images choose": Case(_computed_scale, 65, "rounds in steps that are computed")}
NAMES: dict[str, Case] = {
    "two weights of one name": Case(
        lambda: _unused(numbers("weights", 1.0)), 65, "two tensors of one name: 'weights'"
    ),
    "a result in place of a weight": Case(
        lambda: classifier([node("Relu", "pixels", "weights")]), 65, "two tensors of one name"
    ),
    "a result in place of the images": Case(
        lambda: classifier([node("Relu", "pixels", "images")]), 65, "two tensors of one name"
    ),
    "two results of one name": Case(
        lambda: classifier([node("Relu", "pixels", "logits")]), 65, "two tensors of one name"
    ),
    "two nodes of one name": Case(
        lambda: classifier(change=_node_names), 65, r"two nodes of one name: 'same\\nname'"
    ),
    "nodes in no order": Case(
        lambda: classifier(change=_reversed), 65, "MatMul 'logits' reads 'pixels', which nothing"
    ),
    "a node that reads nothing": Case(
        lambda: classifier([node("Relu", "gone", "y")]), 65, "Relu 'y' reads 'gone', which nothing"
    ),
}
FORMS: dict[str, Case] = {
    "two inputs": Case(lambda: classifier(change=_more_input), 65, "2 inputs and 1 outputs"),
    "no input": Case(lambda: classifier(change=_no_input), 65, "0 inputs and 1 outputs"),
    "two outputs": Case(lambda: classifier(change=_more_output), 65, "1 inputs and 2 outputs"),
    "a batch of one": Case(lambda: _form((1, *SHAPE)), 65, "need one input, .* free batch"),
    "a batch of none": Case(lambda: _form((0, *SHAPE)), 65, "need one input, .* free batch"),
    "images of any size": Case(lambda: _form(("n", 1, "h", "w")), 65, "of fixed size"),
    "images of negative size": Case(lambda: _form(("n", 1, -4, -4)), 65, "of fixed size"),
    "rows of numbers": Case(lambda: _form(("n", 16)), 65, "need one input"),
    "images of integers": Case(lambda: _form(kind=TensorProto.INT32), 65, "need one input"),
    "images of 16 TB": Case(lambda: _form(("n", 1, 2**21, 2**21)), 65, "cannot be comp|asks for"),
    "maps in place of logits": Case(
        lambda: _form(logits=node("Identity", "images", "logits")), 65, "need logits"
    ),
    "classes in place of logits": Case(
        lambda: _form(logits=node("ArgMax", "x", "logits", axis=1)), 65, "need logits"
    ),
    "one answer for all images": Case(
        lambda: _form(logits=node("ReduceMax", "x", "logits", keepdims=1)), 65, "need logits"
    ),
}
BOMBS: dict[str, Case] = {
    "256 GiB of ones": Case(lambda: _of_shape(2**36), 65, ABOVE),
    "more than there are addresses": Case(lambda: _of_shape(2**40, 2**40), 65, ABOVE),
    "a negative number of ones": Case(lambda: _of_shape(-1), 65, "cannot be computed"),
    "an expanded image": Case(lambda: _large("Expand", numbers("s", 2**40, 1, 16)), 65, ABOVE),
    "a tiled image": Case(lambda: _large("Tile", numbers("t", 2**20, 2**20)), 65, ABOVE),
    "a padded image": Case(lambda: _large("Pad", numbers("p", 0, 0, 0, 2**40)), 65, ABOVE),
    "an image of 2**34 pixels": Case(_resize, 65, ABOVE),
    "numbers from 0 to 2**40": Case(_range, 65, ABOVE),
    "constants of 2 GiB": Case(_many_constants, 65, ABOVE),
    "4 TB of patches": Case(_patches, 65, "Conv 'made' asks for .* GiB"),
    "a size that images choose": Case(
        lambda: ending(
            [
                node("ReduceMax", "images", "top", keepdims=0),
                node("Cast", "top", "size", to=7),
                node("Unsqueeze", "size axis", "shape"),
                node("ConstantOfShape", "shape", "made"),
            ],
            [numbers("axis", 0)],
        ),
        65,
        "ConstantOfShape 'made' gives a size that cannot be told",
    ),
    "the square of the batch": Case(_square, 65, "cannot be told"),
    "256 GiB for 8 images": Case(_unless_eight, 65, "cannot be told"),
    "256 GiB for more than 8 images": Case(lambda: _unless_eight("Greater"), 65, "cannot be told"),
    "what a division leaves": Case(_rest_of_division, 65, "cannot be told"),
    "every third image": Case(_rest_of_stride, 65, "Slice 'third' takes a part of the batch"),
    "an axis that is there at times": Case(_squeezed, 65, "Squeeze 'made' gives"),
    "a shape that does not fit": Case(
        lambda: _large("Reshape", numbers("s", 2**20, 2**20)), 65, "Reshape 'made' makes"
    ),
    "25 million nodes": Case(lambda: _graph_with(b"\x0a\x00" * 25_000_000), 65, "262144 fields"),
    "25 million weights": Case(lambda: _graph_with(b"\x2a\x00" * 25_000_000), 65, "262144 fields"),
    "50 thousand nodes": Case(
        lambda: _graph_with(b"\x0a\x00" * 50_000), 65, "50002 nodes, above 10000"
    ),
    "nested a thousand times": Case(lambda: _nested(1000), 65, "nested more than 24 deep"),
    "64 million small integers": Case(
        lambda: _graph_with(sized(5, sized(7, bytes(2**26)))), 65, "bytes beside its weights"
    ),
    "5 million numbers one by one": Case(
        lambda: _graph_with(sized(5, b"\x25\x00\x00\x00\x00" * 5_000_000)), 65, "262144 fields"
    ),
    "64 MB of words": Case(
        lambda: _graph_with(sized(10, b"x" * 2**26)), 65, "bytes beside its weights"
    ),
    "a million axes": Case(
        lambda: _graph_with(sized(5, sized(1, b"\x01" * 1_000_000) + b"\x10\x01" + sized(8, b"w"))),
        65,
        "'w' has 1000000 axes",
    ),
    "NaN at the end of 100 MB": Case(
        lambda: _unused(_raw(FLOAT, [25_000_000], bytes(99_999_996) + b"\x00\x00\xc0\x7f")),
        65,
        "'odd' is not finite: value 24999999 of 25000000",
    ),
}
WIRE: dict[str, Case] = {
    "nothing": Case(lambda: b"", 65, "not an ONNX file"),
    "text": Case(lambda: b"not a model", 65, "not an ONNX file"),
    "a pickle": Case(lambda: pickle.dumps({"weights": [1.0]}), 65, "not an ONNX file"),
    "zeros": Case(lambda: bytes(10_000), 65, "not an ONNX file"),
    "a torn file": Case(lambda: classifier()[:-20], 65, "not an ONNX file .*cut short"),
    "a field of no meaning": Case(lambda: classifier() + sized(99, b""), 65, "field 99, which is"),
    "a group": Case(lambda: classifier() + b"\x3b\x3c", 65, "damaged"),
    "a length of eleven bytes": Case(lambda: classifier() + b"\x12" + b"\x80" * 10, 65, "damaged"),
    "a second graph": Case(lambda: classifier() + sized(7, b""), 65, "ModelProto says graph twice"),
    "text that is none": Case(
        lambda: _graph_with(sized(1, sized(4, b"\xff\xfe"))), 65, "op_type that is no UTF-8"
    ),
    "onnxruntime's format as well": Case(lambda: _polyglot(b"ORTM"), 65, "onnxruntime's own file"),
    "TFLite's format as well": Case(lambda: _polyglot(b"TFL3"), 65, "a TFLite file"),
}
GROUPS = (EXTERNAL, OPERATORS, VALUES, STEPS, NAMES, FORMS, BOMBS, WIRE)
CASES: dict[str, Case] = {name: case for group in GROUPS for name, case in group.items()}


def matches(case: Case, message: str) -> bool:
    return re.search(case.words, message) is not None
