"""Weights and biases as integers: the one definition that calibration and training share.

A weight is an int8 code times a scale of its output channel. A bias is a whole number of the steps
in which the int32 sum of products counts, so that every engine computes with the same bias, whether
it adds biases to that sum or to the result. Gradients pass straight through both roundings.
"""

import torch
from torch import Tensor

from advprune.twin.codes import quantize

LARGEST_CODE = 127
# A bias is added to the int32 sum of products: half of its range each.
LARGEST_BIAS_CODE = 1 << 30
# Below it float32 loses digits and then everything.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def round_weight(
    weight: Tensor, axis: int, step: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes, and one scale for each output channel.

    A scale is max|w| / 127, but never so small that the channel's bias, in units of step * scale,
    would overflow the int32 accumulator: such a channel is its bias. A channel of zeros without
    bias, or too small for a float32 scale, gets 1, since engines refuse a scale of 0.

    Args:
        weight: float32, any shape.
        axis: the axis of output channels.
        step: scale of the activation that multiplies the weight, a scalar.
        bias: one value for each output channel.

    Returns:
        Codes, whole numbers in [-127, 127] in float32, with the gradient of weight / scale; scales,
        float32 (O,), above 0, without gradient.
    """
    with torch.no_grad():
        channels = weight.movedim(axis, 0).flatten(1)
        scales = channels.abs().amax(dim=1).double() / LARGEST_CODE
        if bias is not None:
            scales = scales.maximum(bias.abs() / (step.double() * LARGEST_BIAS_CODE))
        usable = scales * step.clamp_max(1.0) >= SMALLEST_SCALE
        scales = scales.where(usable, 1.0).float()
    zero = torch.zeros((), dtype=torch.int8, device=weight.device)
    return quantize(weight, scales, zero, axis=axis), scales


def round_bias(bias: Tensor, step: Tensor, scales: Tensor) -> Tensor:
    """The nearest multiple of step * scales, with the gradient of the bias itself.

    Args:
        bias, scales: (O,).
        step: a scalar.
    """
    with torch.no_grad():
        grid = step * scales
        rounded = (bias.double() / grid.double()).round().float() * grid
    return rounded + (bias - bias.detach())
