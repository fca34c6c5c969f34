"""Numbers that a graph makes on its way to a shape, for a few sizes of batch at once.

A list of arrays holds one for each size of batch, in ascending order. Numbers that depend on it
grow with it, and stay so: they are picked, joined and multiplied by positive constants, and nothing
else is computed with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Numbers = NDArray[Any]
Series = tuple[Numbers, ...]
Dims = tuple[int, ...]

MOST = 1024  # more than any shape has
OLDEST_OPSET = 13  # before it, axes are attributes
_EXACT = 2.0**62


def grows(series: Series) -> bool:
    """Whether the numbers depend on the size of the batch."""
    return any(not np.array_equal(series[0], other) for other in series[1:])


def computed(
    node: NodeProto, inputs: Sequence[Series | None], dims: Sequence[Dims]
) -> Series | None:
    """What a node computes of numbers; None if that is not known here.

    Args:
        inputs: None for what is not known, or not given.
        dims: of its result, for each size of batch; at most `MOST` numbers.

    Raises:
        ArithmeticError, LookupError, ValueError: the node cannot be computed.
    """
    known = [series for series in inputs if series is not None]
    function = _FUNCTIONS.get(node.op_type)
    if function is None or len(known) < len(inputs) or not _keeps_growing(node.op_type, known):
        return None
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    # Fractions are rounded, and smaller integers begin again from below.
    if any(part.dtype not in (np.int64, np.bool_) for series in known for part in series):
        return None
    with np.errstate(all="ignore"):
        series = [function(settings, x, *(part[i] for part in known)) for i, x in enumerate(dims)]
    return tuple(series) if [x.shape for x in series] == [*dims] else None


def _keeps_growing(kind: str, known: Sequence[Series]) -> bool:
    """Whether a node only picks, joins or multiplies those that grow."""
    growing = [i for i, series in enumerate(known) if grows(series)]
    if not growing or kind == "Concat":
        return True
    if kind == "Mul":
        return len(growing) == 1 and all(
            (known[1 - growing[0]][0] > 0).all() and _product(known, i) < _EXACT
            for i in range(len(known[0]))
        )
    if kind == "Equal":  # as exporters ask whether a size was left open
        first, second = known[growing[0]], known[1 - growing[0]][0]
        moving = first[0][first[0] != first[-1]]
        return len(growing) == 1 and moving.min() > 0 and second.max() <= 0
    return kind in _PICKING and set(growing) <= _PICKING[kind]


def _product(known: Sequence[Series], index: int) -> float:
    return float(np.prod([np.abs(series[index].astype(float)).max() for series in known]))


def array(tensor: TensorProto) -> Numbers | None:
    """The values of a tensor; None where they were taken from it."""
    return numpy_helper.to_array(tensor) if tensor.HasField("raw_data") else None


def _constant(settings: Mapping[str, Any], _dims: Dims) -> Numbers:
    ((name, value),) = settings.items()
    kind = np.int64 if name.startswith("value_int") else np.float32
    found = array(value) if isinstance(value, TensorProto) else np.array(value, kind)
    if found is None:
        raise ValueError("it has no values")
    return found


def _filled(settings: Mapping[str, Any], dims: Dims, _shape: Numbers) -> Numbers:
    value = array(settings["value"]) if "value" in settings else np.zeros(1, np.float32)
    if value is None or value.size != 1:
        raise ValueError("a value that is not one number")
    return np.full(dims, value.item(), value.dtype)


def _slice(
    _settings: Mapping[str, Any],
    _dims: Dims,
    x: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:
    where = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = i if axes is None else int(axes[i])
        where[axis] = slice(start, end, 1 if steps is None else int(steps[i]))
    return x[tuple(where)]


def _divided(_settings: Mapping[str, Any], _dims: Dims, a: Numbers, b: Numbers) -> Numbers:
    if not b.all():
        raise ValueError("a division by zero")
    return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))  # towards zero, as C does


# Attributes, size of the result, inputs -> result.
_FUNCTIONS: Mapping[str, Callable[..., Numbers]] = {
    "Add": lambda _s, _d, a, b: a + b,
    "Cast": lambda s, _d, x: x.astype(helper.tensor_dtype_to_np_dtype(s["to"])),
    "Constant": _constant,
    "Concat": lambda s, _d, *parts: np.concatenate(parts, s["axis"]),
    "ConstantOfShape": _filled,
    "Div": _divided,
    "Equal": lambda _s, _d, a, b: np.equal(a, b),
    "Expand": lambda _s, d, x, _shape: np.broadcast_to(x, d),
    "Gather": lambda s, _d, x, index: np.take(x, index, s.get("axis", 0)),
    "Identity": lambda _s, _d, x: x,
    "Mod": lambda s, _d, a, b: (np.fmod if s.get("fmod") else np.mod)(a, b),
    "Mul": lambda _s, _d, a, b: a * b,
    "Range": lambda _s, _d, start, end, step: np.arange(start.item(), end.item(), step.item()),
    "Reshape": lambda _s, d, x, _shape: x.reshape(d),
    "Slice": _slice,
    "Squeeze": lambda _s, d, x, *_axes: x.reshape(d),
    "Sub": lambda _s, _d, a, b: a - b,
    "Transpose": lambda s, _d, x: x.transpose(s.get("perm")),
    "Unsqueeze": lambda _s, d, x, _axes: x.reshape(d),
    "Where": lambda _s, _d, condition, a, b: np.where(condition, a, b),
}
# Which inputs of these may grow.
_FIRST = {
    *("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"),
    "Unsqueeze",
}
_PICKING = {**{kind: {0} for kind in _FIRST}, "Where": {1, 2}}
