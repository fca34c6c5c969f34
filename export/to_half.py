"""Half precision: the float graph with weights and sums of 16 bits, for GPUs that halve the time.

Made from the float graph, never from a quantised one: half precision would round its scales, and
another function would come out.
"""

import warnings

import numpy as np
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from advprune.errors import BadData, Incompatible
from export import graph

_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: ModelProto) -> ModelProto:
    """The graph in float16 between float32 images and float32 logits; the original is left alone.

    Zero weights stay zero.

    Raises:
        Incompatible: the graph is quantised.
        BadData: a constant is beyond the range of float16.
    """
    if count := graph.quantisation_nodes(model):
        raise Incompatible(f"fp16: the graph is quantised ({count} Q/DQ nodes); give the float one")
    for name, values in graph.constants(model).items():
        if values.dtype == np.float32 and not (np.abs(values) <= _LARGEST).all():
            raise BadData(
                f"fp16: {name} reaches {np.abs(values).max():g}, beyond {_LARGEST:g}; ship int8"
            )
    copy = ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        # It tells of every weight below the smallest half, which then takes that value.
        warnings.simplefilter("ignore", UserWarning)
        result = convert_float_to_float16(copy, keep_io_types=True)
    graph.put_nodes(result, result.graph.node)  # it appends what the first nodes read
    graph.set_metadata(result, {"precision": "fp16"})
    graph.strip(result)
    return result
