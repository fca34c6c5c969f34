"""Rounding to 8 bits and back, with the gradient that attacks on rounded networks need.

Codes are whole numbers in float32, because integers have no gradient; zero points keep their
integer type and so tell the range of the codes.
"""

from typing import Any

import torch
from torch import Tensor


class Unsupported(Exception):
    """Something that the ONNX standard allows and the differentiable twin does not know."""


class _Quantize(torch.autograd.Function):
    """Written out because torch's clamp has gradient 0 at the last code, where many values lie."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(scale, *((x, zero) if learns else ()))
        ctx.ends = low, high
        return (x / scale).round_().add_(zero).clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        scale, *values = ctx.saved_tensors
        through = gradients[0] / scale
        if not values:
            return through, None, None, None, None
        x, zero = values
        steps = x / scale
        codes, (low, high) = steps.round() + zero, ctx.ends
        inside = (codes >= low) & (codes <= high)
        by_scale = -(through * steps).where(inside, 0.0)
        return through, by_scale.sum_to_size(scale.shape), None, None, None


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """clamp(round(x / scale) + zero), half to even, to the range of the zero point's type; float32.

    The gradient is 1 / scale, as if nothing were rounded or cut: the straight-through estimator
    (Bengio et al. 2013). The true gradient of rounding is 0, and makes any network that rounds look
    robust; that of cutting hides the way back from a code that has run into its end. Dividing is
    the standard's way: the reciprocal gives other codes next to ties.

    A scale that learns gets the gradient of LSQ (Esser et al. 2020, equation 3), once the codes are
    multiplied by it: -x / scale**2 where nothing was cut, else 0.

    Args:
        x: float32, any shape.
        scale: a scalar, or one value for each place along `axis`.
        zero: of an integer type, shaped like `scale`; 0 of type uint8 if None.

    Raises:
        Unsupported: codes of a type that is no integer.
    """
    zero = torch.zeros((), dtype=torch.uint8) if zero is None else zero
    if zero.is_floating_point():
        raise Unsupported(f"codes of type {zero.dtype}")
    kind = torch.iinfo(zero.dtype)
    # As float32: arithmetic between types takes torch many times as long.
    parameters = along(scale, axis, x), along(zero, axis, x).to(x.dtype)
    codes = _Quantize.apply(x, *parameters, kind.min, kind.max)
    assert isinstance(codes, Tensor)
    return codes


def dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """(codes - zero) * scale, float32; arguments as those of `quantize`."""
    return centre(codes, zero, axis=axis) * along(scale, axis, codes)


def centre(codes: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """codes - zero: what a code stands for, in units of its scale; float32."""
    values = codes.to(torch.float32)
    return values if zero is None else values - along(zero, axis, codes).to(torch.float32)


def along(values: Tensor, axis: int, x: Tensor) -> Tensor:
    """A scalar, or (C,) as a tensor that broadcasts along the axis of `x` that has C places."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
