"""Batch norm over the rows of all ranks (Ioffe & Szegedy 2015 over the whole batch).

One message each way, as small as the layer has channels: what a message takes is its delay. torch's
own `SyncBatchNorm` is for GPUs only, and gathers the statistics of every rank instead of summing
them, which grows with the ranks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from advprune.ranks import total


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` in training mode, with the statistics of the rows of all ranks."""
    assert training
    with torch.no_grad():
        mean, variance, count = _statistics(x)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1.0))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    kind = _precise(x).dtype
    moments = mean.to(kind), variance.to(kind)
    return _Normalised.apply(x, weight, bias, *moments, count, eps)  # pyright: ignore[reportReturnType]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of each channel, and how many values it has, over all ranks.

    Sums of squares are those about each rank's own mean, moved to zero in float64: there the
    digits that cancel when they are moved back are none that float32 has.
    """
    variance, mean = torch.var_mean(_precise(x), _over(x), correction=0)
    mean, variance = mean.double(), variance.double()
    values = mean.new_full((1,), x.numel() / x.shape[1])
    mine = torch.cat([mean * values, (variance + mean.square()) * values, values])
    *moments, count = total(mine).split([len(mean), len(mean), 1])
    mean, square = (sums / count for sums in moments)
    return mean, (square - mean.square()).clamp_min_(0.0), count


class _Normalised(torch.autograd.Function):
    """(x - mean) / std * weight + bias, of which mean and std depend on all rows of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        rate = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, rate, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # which `once_...` changes
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Equations of the paper's section 3, with sums over all rows of all ranks in place of m.

        Weight and bias get the gradient of this rank's rows, as all other parameters do.
        """
        x, weight, mean, rate, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        above = _precise(gradients[0])
        upright = (_precise(x) - mean.view(shape)) * rate.view(shape)
        mine = torch.cat([above.sum(_over(x)), (above * upright).sum(_over(x))])
        to_bias, to_weight = mine.chunk(2)
        level, slope = (total(mine) / count.to(mine.dtype)).chunk(2)
        scale = rate if weight is None else rate * weight
        below = above - level.view(shape) - upright * slope.view(shape)
        to_x = (below * scale.view(shape)).to(x.dtype)
        wanted = zip((to_x, to_weight, to_bias), ctx.needs_input_grad[:3], strict=True)
        return *(found if asked else None for found, asked in wanted), None, None, None, None


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _over(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]
