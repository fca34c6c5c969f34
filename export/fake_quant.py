"""The network that a quantised file is, with float weights behind its codes: what training moves.

It is the twin of a file in the TensorRT form, so that it rounds where the file rounds, in the same
arithmetic. Where the twin reads codes, scales and biases as constants, this network makes them from
weights that learn; `write` puts them back as they last were. So the file computes what was trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from advprune.errors import BadData, Incompatible
from advprune.frozen import OfWeights
from advprune.twin.codes import Unsupported
from advprune.twin.network import Network, Step
from advprune.types import Images, Logits
from export import graph
from export.quantize import WEIGHTED, output_axis
from export.rounding import LARGEST_CODE, SMALLEST_SCALE, round_bias, round_weight

Scales = Literal["learned", "observed"]
# Of the largest magnitude of the last batch, in the moving average of observed scales.
MOMENTUM = 0.1


@dataclass(frozen=True)
class Layer:
    """One layer of codes, by the names of its constants.

    Attributes:
        weight, bias: in the float graph; no bias is "".
        axis: of output channels.
        step: scale of what the layer reads.
        codes, scales, rounded: of the weight and the bias, in the quantised graph.
    """

    weight: str
    bias: str
    axis: int
    step: str
    codes: str
    scales: str
    rounded: str


class Codes(OfWeights):
    """Every constant of a quantised graph that training moves, made from weights in float.

    A weight that is zero at the start stays zero: masks survive. Scales of activations are the
    calibrated ones times exp(shift): they stay positive, and a decay draws them to the calibrated.

    Args:
        layers: the layers of the quantised graph.
        floats: constants of the float graph.
        steps: scales of activations, by name.
        scales: "learned" moves them by their gradient; "observed" leaves that to `observe`.
    """

    def __init__(
        self,
        layers: list[Layer],
        floats: dict[str, NDArray],
        steps: dict[str, NDArray],
        scales: Scales,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.steps = list(steps)
        calibrated = np.array([steps[name] for name in steps], np.float32)
        self.calibrated = nn.Buffer(torch.from_numpy(calibrated))
        self.shift = nn.Parameter(torch.zeros(len(steps)), requires_grad=scales == "learned")
        # One weight may serve two layers: a module that is called twice.
        weights = dict.fromkeys(layer.weight for layer in layers)
        biases = dict.fromkeys(layer.bias for layer in layers if layer.bias)
        self._weights = {name: f"weight{i}" for i, name in enumerate(weights)}
        self._biases = {name: f"bias{i}" for i, name in enumerate(biases)}
        for name, place in (self._weights | self._biases).items():
            value = torch.tensor(floats[name])
            self.register_parameter(place, nn.Parameter(value))
            if name in self._weights:
                self.register_buffer(f"{place}_kept", value != 0)

    def forward(self) -> dict[str, Tensor]:
        """Name -> value: codes as whole numbers in float32, scales above 0, rounded biases."""
        found = dict(zip(self.steps, self._scales().unbind(), strict=True))
        for layer in self.layers:
            place, step = self._weights[layer.weight], found[layer.step]
            weight = self.get_parameter(place) * self.get_buffer(f"{place}_kept")
            if weight.ndim == 4:  # the layout that the network computes in
                weight = weight.contiguous(memory_format=torch.channels_last)
            bias = self.get_parameter(self._biases[layer.bias]) if layer.bias else None
            codes, scales = round_weight(weight, layer.axis, step, bias)
            found |= {layer.codes: codes, layer.scales: scales}
            if bias is not None:
                found[layer.rounded] = round_bias(bias, step, scales)
        return found

    def _scales(self) -> Tensor:
        return (self.calibrated * self.shift.exp()).clamp_min(SMALLEST_SCALE)

    @torch.no_grad()
    def observe(self, largest: dict[str, Tensor]) -> None:
        """Move scales towards the largest magnitudes that a batch had, by name of the scale."""
        now = self._scales()
        seen = torch.stack(
            [largest.get(name, now[i] * LARGEST_CODE) for i, name in enumerate(self.steps)]
        )
        moved = now + MOMENTUM * (seen / LARGEST_CODE - now)
        self.shift.copy_((moved / self.calibrated).log())


class FakeQuant(Network):
    """A quantised graph that learns: float32 images (N, C, H, W) in [0, 1] to logits (N, K).

    Args:
        float_model: the float graph.
        model: its quantised graph in the TensorRT form.
        scales: of activations, see `Codes`.

    Raises:
        Incompatible: the graph has an operator without a gradient.
    """

    def __init__(self, float_model: ModelProto, model: ModelProto, scales: Scales) -> None:
        layers = list(_layers(float_model, model))
        values = graph.constants(model)
        quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        steps = {node.input[1]: values[node.input[1]] for node in quantisers}
        learned = {name for layer in layers for name in (layer.codes, layer.scales, layer.rounded)}
        try:
            super().__init__(model.graph, camera=False, learned=learned | steps.keys())
        except Unsupported as error:
            raise Incompatible(f"quantise: no training through {error}; use ptq") from error
        self.codes = Codes(layers, graph.constants(float_model), steps, scales)
        self._observes = scales == "observed"
        self._largest: dict[str, Tensor] = {}

    def constants(self) -> dict[str, Tensor]:
        return super().constants() | self.codes()

    def forward(self, x: Images) -> Logits:
        logits = super().forward(x)
        if self._largest:
            self.codes.observe(self._largest)
            self._largest = {}
        return logits

    def run(self, step: Step, values: dict[str, Tensor]) -> None:
        if self._observes and self.training and step.kind == "QuantizeLinear":
            value, scale = step.inputs[:2]
            largest = values[value].detach().abs().amax()
            # Tensors that share a scale need one for the largest of them.
            self._largest[scale] = largest.maximum(self._largest.get(scale, largest))
        super().run(step, values)


def write(net: FakeQuant, model: ModelProto, path: Path) -> None:
    """The quantised graph with what the network has learned.

    Args:
        model: the graph that the network was made from.

    Raises:
        BadData: a scale or a bias is not finite.
        CannotCreate: the file cannot be written.
    """
    with torch.no_grad():
        learned = {name: value.cpu().numpy() for name, value in net.codes().items()}
    for name, value in learned.items():
        if not np.isfinite(value).all():
            raise BadData(f"quantise: {name} is not finite after training; lower quantize.lr")
    types = {name: value.dtype for name, value in graph.constants(model).items()}
    trained = ModelProto()
    trained.CopyFrom(model)
    graph.put_constants(trained, {name: v.astype(types[name]) for name, v in learned.items()})
    graph.set_metadata(trained, {"quantisation": "qat"})
    graph.save(trained, path)


def _layers(float_model: ModelProto, model: ModelProto) -> Iterator[Layer]:
    """What was quantised: the same node of both graphs has the same result."""
    floats, rounded = graph.producers(float_model), graph.producers(model)
    constants = graph.constants(model)
    for result, node in rounded.items():
        if node.op_type not in WEIGHTED or node.input[1] in constants:
            continue
        weight = rounded[node.input[1]]
        if weight.input[0] not in constants:  # a product of two activations
            continue
        source, has_bias = floats[result], len(node.input) > 2
        yield Layer(
            weight=source.input[1],
            bias=source.input[2] if has_bias else "",
            axis=output_axis(node),
            step=rounded[node.input[0]].input[1],
            codes=weight.input[0],
            scales=weight.input[1],
            rounded=node.input[2] if has_bias else "",
        )
