"""2:4 in a file: at most two of four consecutive inputs of every output are not zero.

Sparse tensor cores skip the other two. A builder that is allowed to use them takes only weights
that have the pattern already and says nothing of those that do not, and tools that look for it do
not look behind DequantizeLinear: so it is counted here, in the file that ships.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from advprune.errors import Incompatible
from export import graph
from export.check import weights

FOUR, TWO = 4, 2


def groups_of_four(path: Path) -> dict[str, tuple[int, int]]:
    """Weight name -> (groups with at most two non-zeros, all groups), in the order of the graph.

    A group is four consecutive input channels at one kernel position of one output channel of a
    convolution, or four consecutive inputs of one output of a Gemm or MatMul. Only eligible weights
    are in it: those whose input channels divide by four, and no grouped convolutions.

    Args:
        path: a float graph, or a quantised one in either encoding.

    Raises:
        NotFound, BadData: the file is missing or not valid.
    """
    readers = graph.consumers(graph.load(path))
    found: dict[str, tuple[int, int]] = {}
    for name, values in weights(path).items():
        (node, *_) = readers.get(name) or readers[f"{name}_quantized"]
        if node.op_type == "DequantizeLinear":
            (node, *_) = readers[node.output[0]]
        axis = _input_axis(node)
        if axis is not None and values.shape[axis] % FOUR == 0:
            non_zeros = _non_zeros(values, axis)
            found[name] = (int((non_zeros <= TWO).sum()), non_zeros.size)
    return found


def has_two_in_four(path: Path) -> bool:
    """Whether every eligible weight of the file has the pattern, and there is one."""
    counts = groups_of_four(path).values()
    return bool(counts) and all(held == total for held, total in counts)


def assert_two_in_four(path: Path, but: int = 0) -> dict[str, tuple[int, int]]:
    """The counts of a file that has the pattern.

    Args:
        but: so many weights may lack it, as frozen layers do.

    Raises:
        Incompatible: it does not, or no weight in it could.
    """
    counts = groups_of_four(path)
    if not counts:
        raise Incompatible(
            f"{path}: no weight has input channels in fours; 2:4 needs a wider network"
        )
    for name, (held, total) in counts.items():
        if held < total and (but := but - 1) < 0:
            raise Incompatible(
                f"{path}: {name} has more than two non-zeros in {total - held} of its {total} "
                "groups of four; prune with --granularity 2:4"
            )
    return counts


def _input_axis(node: NodeProto) -> int | None:
    """The axis of a weight that is summed over; None for a grouped convolution."""
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Conv":
        return 1 if settings.get("group", 1) == 1 else None
    return -1 if settings.get("transB", 0) else -2


def _non_zeros(values: NDArray, axis: int) -> NDArray[np.int64]:
    """How many of four are not zero, for each group along the axis; any shape."""
    inputs = np.moveaxis(values, axis, -1)
    return np.count_nonzero(inputs.reshape(*inputs.shape[:-1], -1, FOUR), axis=-1)
