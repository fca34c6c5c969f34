"""What stands beside an engine: what it was built from, for which machine, and how.

An engine is native code for one TensorRT and one GPU, and nothing in its bytes says so to a reader.
The card does, in JSON, so that a runtime can refuse before it hands over a single byte of it.
"""

import json
import re
from collections import Counter
from typing import Any, Protocol

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from export import build_engine, graph
from export.build_engine import BuildOptions

_UNKNOWN = "unknown"
# What TensorRT writes for a type, in a word of its own or in a sentence about the memory layout.
_TYPES = {
    "int8": "int8",
    "fp8": "fp8",
    "fp16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp32": "fp32",
    "float": "fp32",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)


class Gpu(Protocol):
    """The GPU that kernels were timed on."""

    @property
    def name(self) -> str: ...

    @property
    def compute_capability(self) -> str: ...


def make_card(
    plan: bytes,
    onnx_bytes: bytes,
    model: ModelProto,
    *,
    tensorrt: str,
    gpu: Gpu,
    options: BuildOptions,
    inspection: str,
) -> bytes:
    """The card of an engine as JSON; equal arguments give equal bytes.

    Args:
        plan: the serialised engine.
        onnx_bytes: the file that it was built from; `model` is the graph in it.
        tensorrt: version that built it.
        gpu: that it was built on.
        options: that it was built with.
        inspection: what TensorRT's engine inspector says of it, in JSON.
    """
    (entry,), (result,) = model.graph.input, model.graph.output
    output = describe(result)
    labels = {entry.key: entry.value for entry in model.metadata_props}.get("labels", "")
    card = build_engine.make_card(
        plan,
        onnx_bytes,
        tensorrt=tensorrt,
        gpu=gpu,
        options=options,
        input=describe(entry),
        output=output,
        classes=output["shape"][-1],
        precision=precision(model),
        layers=layer_precisions(inspection),
        labels=labels.split("\n") if labels else [],
    )
    return build_engine.seal(card)


def precision(model: ModelProto) -> str:
    """What the graph asks for: "int8" if it quantises, else the type of its weights."""
    if graph.quantisation_nodes(model):
        return "int8"
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if halves else "fp32"


def layer_precisions(inspection: str) -> dict[str, int]:
    """How many layers of an engine compute in which type, "unknown" where it does not say.

    A layer computes in the type of its weights, or else in that of its first input. The inspector's
    JSON is no stable format: types are found by their words, and text that is no JSON, or a layer
    that is only a name, is not an error.
    """
    try:
        content = json.loads(inspection)
    except ValueError:
        return {}
    layers = content.get("Layers", []) if isinstance(content, dict) else content
    if not isinstance(layers, list):
        return {}
    return dict(sorted(Counter(_layer_type(layer) for layer in layers).items()))


def _layer_type(layer: Any) -> str:
    if not isinstance(layer, dict):
        return _UNKNOWN
    for place in ("Weights", "Inputs", "Outputs"):
        described = layer.get(place)
        for part in described if isinstance(described, list) else [described]:
            # Names are the network's own, and a tensor may be called "half".
            said = [
                text
                for key, text in (part.items() if isinstance(part, dict) else ())
                if "type" in key.lower() and isinstance(text, str)
            ]
            if found := _TYPE.search(" ".join(said)):
                return _TYPES[found[1].lower()]
    return _UNKNOWN


def describe(value: ValueInfoProto) -> dict[str, Any]:
    """Name, shape with -1 for the free batch, and numpy's name of the type."""
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "shape": [dim.dim_value or -1 for dim in kind.shape.dim],
        "type": helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
    }
