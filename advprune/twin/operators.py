"""ONNX operators as functions of tensors that a gradient passes through.

A function takes an operator's inputs in order, None for one left out, and its attributes by name;
an attribute that it does not name is not supported. Meanings and defaults are the standard's,
https://onnx.ai/onnx/operators. Here are those that torch's exporter and `export` write, and
two of our own, Centre and Rescale, between which sums of codes are exact.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from advprune.pointwise import unstrided
from advprune.twin.codes import Unsupported, centre, dequantize, quantize
from advprune.twin.integers import rescale

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
Ints = Sequence[int]


def _padding(pads: Ints, auto_pad: str) -> tuple[int, int]:
    """(top, left, bottom, right) as torch's convolutions and pools take it."""
    if auto_pad != "NOTSET":
        raise Unsupported(f"auto_pad {auto_pad}")
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        raise Unsupported(f"pads {list(pads)}, which differ between opposite sides")
    return top, left


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (1, 1),
    group: int = 1,
    kernel_shape: Ints = (),  # the weight's own
    pads: Ints = (0, 0, 0, 0),
    strides: Ints = (1, 1),
) -> Tensor:
    padding = _padding(pads, auto_pad)
    rows, columns = weight.shape[2:]
    x, step = unstrided(x, (rows, columns), (strides[0], strides[1]), padding)
    return F.conv2d(x, weight, bias, step, padding, tuple(dilations), group)


def _max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = (1, 1),
    kernel_shape: Ints,
    pads: Ints = (0, 0, 0, 0),
    storage_order: int = 0,  # of indices, a second output that nothing here gives
    strides: Ints = (1, 1),
) -> Tensor:
    window = tuple(kernel_shape), tuple(strides), _padding(pads, auto_pad), tuple(dilations)
    return F.max_pool2d(x, *window, ceil_mode=bool(ceil_mode))


def _average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints,
    pads: Ints = (0, 0, 0, 0),
    strides: Ints = (1, 1),
) -> Tensor:
    window = tuple(kernel_shape), tuple(strides), _padding(pads, auto_pad)
    return F.avg_pool2d(x, *window, bool(ceil_mode), bool(count_include_pad))


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * (a.T if transA else a) @ (b.T if transB else b)
    return product if c is None else product + beta * c


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # of training, which no exported graph does
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


def _layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # float32, the only type here
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, shift, epsilon)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if not a.is_floating_point():
        raise Unsupported("integers")
    return a / b


def _reduce_mean(
    x: Tensor,
    axes: Tensor | list[int] | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    # Before opset 18 the axes are an attribute.
    places = axes.tolist() if isinstance(axes, Tensor) else axes
    if not places:
        raise Unsupported("no axes")
    return x.mean(places, keepdim=bool(keepdims))


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    if not allowzero:
        sizes = [size or x.shape[i] for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    places = sorted(axis % (x.ndim + axes.numel()) for axis in axes.tolist())
    return functools.reduce(torch.unsqueeze, places, x)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _split(x: Tensor, *, axis: int = 0, num_outputs: int) -> tuple[Tensor, ...]:
    return x.split(-(-x.shape[axis] // num_outputs), axis)


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    if steps is not None and (steps != 1).any():
        raise Unsupported(f"steps {steps.tolist()}")
    places = [slice(None)] * x.ndim
    chosen = range(len(starts)) if axes is None else axes.tolist()
    for axis, start, end in zip(chosen, starts.tolist(), ends.tolist(), strict=True):
        size = x.shape[axis]  # exporters write its ends as -2**63 and 2**63 - 1
        places[axis] = slice(max(start, -size), min(end, size))
    return x[tuple(places)]


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    found = x.index_select(axis, indices.reshape(-1).to(x.device) % x.shape[axis])
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis:][1:])


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise Unsupported(f"batch_dims {batch_dims}")
    return x[indices.to(x.device).unbind(-1)]


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end])


def _cast(x: Tensor, *, to: int) -> Tensor:
    # Pixels are whole numbers in float32 already.
    if to != TensorProto.FLOAT:
        raise Unsupported(f"to {TensorProto.DataType.Name(to)}")
    return x.to(torch.float32)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high)


def _max(x: Tensor, other: Tensor) -> Tensor:
    # One number costs torch a third of the time that a tensor of one number does.
    return torch.clamp(x, min=other.item()) if other.numel() == 1 else torch.maximum(x, other)


def _min(x: Tensor, other: Tensor) -> Tensor:
    return torch.clamp(x, max=other)


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Centre": centre,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "DequantizeLinear": dequantize,
    "Div": _divide,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, shape.tolist())),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0.0, 1.0),
    "HardSwish": lambda x: F.hardswish(x),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, b: a @ b,
    "Max": _max,
    "MaxPool": _max_pool,
    "Min": _min,
    "Mul": lambda a, b: a * b,
    "QuantizeLinear": quantize,
    "Range": lambda start, stop, step: torch.arange(start.item(), stop.item(), step.item()),
    "ReduceMean": _reduce_mean,
    "Relu": lambda x: x.relu(),
    "Rescale": rescale,
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda x, *, axis=-1: x.softmax(axis),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, b: a - b,
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": lambda condition, a, b: torch.where(condition, a, b),
}
