"""The function in an ONNX file as a network with gradients, 8-bit rounding included.

An engine has no gradient, and attacks on its float ancestor make it look more robust than it is.
This is a twin of the very file that ships: it computes what the file says, node by node, and
gradients pass straight through rounding.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from torch import Tensor, nn

from advprune.types import Images, Logits
from deploy.codes import Unsupported, quantize
from deploy.errors import DeployError
from deploy.integers import on_codes
from deploy.operators import OPERATORS

# Before 13 the same attributes of some operators meant something else.
_OPSETS = range(13, 25)
_DOMAINS = ("", "ai.onnx")


def differentiable(data: bytes, origin: str) -> nn.Module:
    """A network of the same logits as the engine that runs this file, and with gradients.

    It takes float32 (N, C, H, W) in [0, 1], any N >= 1, as `EdgeModel.predict` does whatever the
    graph takes: pixels of a uint8 graph are rounded here. It gives float32 (N, K). Its constants
    are buffers, and none of its tensors requires a gradient.

    Args:
        data: a whole ONNX file with all its weights inside, any precision, either input form.
        origin: its name, for messages.

    Raises:
        DeployError: 65 the file is broken, or does not turn images into logits; 78 something in it
            has no differentiable counterpart here.
    """
    model = _parse(data, origin)
    camera, shape = _input_form(model.graph, origin)
    try:
        _check_operators(model)
        twin = _Twin(model.graph, camera)
        with torch.no_grad():
            logits = twin(torch.zeros(2, *shape))
    except Unsupported as error:
        raise DeployError(
            f"{origin}: no gradient through {error}; attack with square, which needs scores only",
            78,
        ) from error
    # A valid graph may still add tensors that do not fit, and torch says so in many ways.
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DeployError(
            f"{origin}: cannot be computed ({reason}); export it again", 65
        ) from error
    if logits.ndim != 2 or len(logits) != 2 or logits.dtype != torch.float32:
        raise DeployError(
            f"{origin}: gives {logits.dtype} {tuple(logits.shape)} for two images; need one float "
            "logit for each class",
            65,
        )
    return twin.eval()


@dataclass(frozen=True)
class _Step:
    """One node, and the values that nobody reads after it."""

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()

    def run(self, values: dict[str, Tensor]) -> None:
        arguments = [values[name] if name else None for name in self.inputs]
        try:
            results = OPERATORS[self.kind](*arguments, **self.settings)
        except Unsupported as error:
            raise Unsupported(f"{self} with {error}") from error
        if isinstance(results, Tensor):
            results = (results,)
        if len(results) != len(self.outputs):
            raise Unsupported(f"{self} with a second result")
        values.update(zip(self.outputs, results, strict=True))
        for name in self.last:
            del values[name]

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


class _Twin(nn.Module):
    """The nodes of a graph, in order, on the constants that they read."""

    def __init__(self, graph: GraphProto, camera: bool) -> None:
        super().__init__()
        constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
        self._camera = camera
        self._input, self._output = _image_inputs(graph)[0].name, graph.output[0].name
        self._steps = _in_order(graph, constants)
        read = {name for step in self._steps for name in step.inputs} & constants.keys()
        # Shapes and axes stay where Python can read them without waiting for a device.
        self._integers = {
            name: constants[name] for name in read if constants[name].dtype == torch.int64
        }
        self._floats = sorted(read - self._integers.keys())
        for i, name in enumerate(self._floats):
            value = constants[name]
            form = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            self.register_buffer(f"constant{i}", value.contiguous(memory_format=form))

    def forward(self, x: Images) -> Logits:
        values = dict(self._integers)
        values |= {name: self.get_buffer(f"constant{i}") for i, name in enumerate(self._floats)}
        # The layout that convolutions on a CPU and tensor cores are fastest with.
        x = x.contiguous(memory_format=torch.channels_last)
        if self._camera:
            x = quantize(x * 255, torch.ones(())).permute(0, 2, 3, 1)
        values[self._input] = x
        del x
        for step in self._steps:
            step.run(values)
        return values[self._output]


def _in_order(graph: GraphProto, constants: dict[str, Tensor]) -> list[_Step]:
    """What is left to compute once images come; what depends on none is added to `constants`."""
    waiting: list[_Step] = []
    with torch.no_grad():
        for node in on_codes(graph):
            step = _step(node)
            if all(name in constants for name in step.inputs if name):
                step.run(constants)
            else:
                waiting.append(step)
    needed = {output.name for output in graph.output}
    steps: list[_Step] = []
    for step in reversed(waiting):
        if needed.isdisjoint(step.outputs):
            continue
        last = {name for name in step.inputs if name} - needed - constants.keys()
        steps.append(replace(step, last=tuple(last)))
        needed.update(step.inputs)
    return steps[::-1]


def _step(node: NodeProto) -> _Step:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    settings = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    step = _Step(node.name, node.op_type, settings, tuple(node.input), tuple(node.output))
    try:
        inspect.signature(OPERATORS[node.op_type]).bind(*step.inputs, **settings)
    except TypeError as error:
        raise Unsupported(f"{step}, which {error}") from error
    return step


def _tensor(tensor: TensorProto) -> Tensor:
    try:
        return torch.from_numpy(numpy_helper.to_array(tensor).copy())
    except TypeError as error:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise Unsupported(f"{tensor.name!r} of type {kind}") from error


def _parse(data: bytes, origin: str) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
        tensors = [*model.graph.initializer]
        tensors += [a.t for node in model.graph.node for a in node.attribute]
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors):
            raise DeployError(
                f"{origin}: weights lie in another file; export with external_data=False", 65
            )
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DeployError(
            f"{origin}: not a valid ONNX model ({reason}); export it again", 65
        ) from error
    return model


def _check_operators(model: ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = next((versions[domain] for domain in _DOMAINS if domain in versions), 0)
    if opset not in _OPSETS:
        raise Unsupported(f"opset {opset}, other than {_OPSETS[0]} to {_OPSETS[-1]}")
    unknown = {
        f"{node.domain}.{node.op_type}".lstrip("."): node.name
        for node in reversed(model.graph.node)
        if node.domain not in _DOMAINS or node.op_type not in OPERATORS
    }
    if unknown:
        raise Unsupported(", ".join(f"{kind} {name!r}" for kind, name in sorted(unknown.items())))


def _image_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """What the graph is given at run time: older files list their weights among its inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _input_form(graph: GraphProto, origin: str) -> tuple[bool, tuple[int, int, int]]:
    """Whether the graph takes camera images, uint8 (N, H, W, C), and (C, H, W) of one image."""
    inputs = _image_inputs(graph)
    if len(inputs) == len(graph.output) == 1:
        kind, dims = inputs[0].type.tensor_type.elem_type, inputs[0].type.tensor_type.shape.dim
        sizes = [dim.dim_value for dim in dims]
        if len(sizes) == 4 and not sizes[0] and all(sizes[1:]):
            _, a, b, c = sizes
            if kind == TensorProto.FLOAT:
                return False, (a, b, c)
            if kind == TensorProto.UINT8:
                return True, (c, a, b)
    raise DeployError(
        f"{origin}: takes {[helper.printable_value_info(value) for value in inputs]}; need one "
        "input, float32 (batch, C, H, W) or uint8 (batch, H, W, C) of fixed size and free batch",
        65,
    )
