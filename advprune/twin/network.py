"""An ONNX graph as a network: its nodes, in order, as functions that a gradient passes through."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from advprune.twin.codes import Unsupported, quantize
from advprune.twin.integers import on_codes
from advprune.twin.operators import OPERATORS
from advprune.types import Images, Logits

DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
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


class Network(nn.Module):
    """The nodes of a graph, in order, on the constants that they read.

    Args:
        camera: the graph takes uint8 (N, H, W, C).
        learned: names of constants that `constants` of a subclass gives at every call, in place of
            those of the graph.

    Raises:
        Unsupported: an operator that has no function here.
    """

    def __init__(self, graph: GraphProto, camera: bool, learned: Collection[str] = ()) -> None:
        super().__init__()
        _check_known(graph)
        kept = (tensor for tensor in graph.initializer if tensor.name not in learned)
        constants = {tensor.name: _tensor(tensor) for tensor in kept}
        self._camera = camera
        self._input, self._output = image_inputs(graph)[0].name, graph.output[0].name
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

    def constants(self) -> dict[str, Tensor]:
        """What the nodes read beside the images, by name."""
        floats = {name: self.get_buffer(f"constant{i}") for i, name in enumerate(self._floats)}
        return floats | self._integers

    def forward(self, x: Images) -> Logits:
        values = self.constants()
        # The layout that convolutions on a CPU and tensor cores are fastest with.
        x = x.contiguous(memory_format=torch.channels_last)
        if self._camera:
            x = quantize(x * 255, torch.ones(())).permute(0, 2, 3, 1)
        values[self._input] = x
        del x
        for step in self._steps:
            self.run(step, values)
        return values[self._output]

    def run(self, step: Step, values: dict[str, Tensor]) -> None:
        """One node; its results join the values."""
        step.run(values)


def _check_known(graph: GraphProto) -> None:
    unknown = {
        f"{node.domain}.{node.op_type}".lstrip("."): node.name
        for node in reversed(graph.node)
        if node.domain not in DOMAINS or node.op_type not in OPERATORS
    }
    if unknown:
        raise Unsupported(", ".join(f"{kind} {name!r}" for kind, name in sorted(unknown.items())))


def _in_order(graph: GraphProto, constants: dict[str, Tensor]) -> list[Step]:
    """What is left to compute once images come; what depends on none is added to `constants`."""
    waiting: list[Step] = []
    with torch.no_grad():
        for node in on_codes(graph):
            step = _step(node)
            if all(name in constants for name in step.inputs if name):
                step.run(constants)
            else:
                waiting.append(step)
    needed = {output.name for output in graph.output}
    steps: list[Step] = []
    for step in reversed(waiting):
        if needed.isdisjoint(step.outputs):
            continue
        last = {name for name in step.inputs if name} - needed - constants.keys()
        steps.append(replace(step, last=tuple(last)))
        needed.update(step.inputs)
    return steps[::-1]


def _step(node: NodeProto) -> Step:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    settings = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    step = Step(node.name, node.op_type, settings, tuple(node.input), tuple(node.output))
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


def image_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """What the graph is given at run time: older files list their weights among its inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]
