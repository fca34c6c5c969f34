"""Strided convolutions of one pixel, as convolutions without a stride.

The same sums over the same pixels. It matters for gradients of weights in the channels-last layout:
where channels are few, fewer than 8 or 16 by the processor, oneDNN's own way of picking the pixels
writes beyond its memory (its issue 6035): processes die, or go on with broken numbers.
"""

from torch import Tensor

Pair = tuple[int, int]


def unstrided(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Tensor, Pair]:
    """What a convolution of this kernel reads of `x` (N, C, H, W), and its stride over that."""
    if kernel != (1, 1) or padding != (0, 0):
        return x, stride
    return x[:, :, :: stride[0], :: stride[1]], (1, 1)
