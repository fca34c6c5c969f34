"""Promise: a twin's convolutions are the standard's, forwards and backwards, in its own layout.

Strided kernels of one over few channels crash in oneDNN as they are, or corrupt the memory
beyond (its issue 6035), in the layout that twins compute in; channel pruning makes such layers.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advprune.twin.operators import OPERATORS

CASES = [
    (channels, kernel, stride, pad)
    for channels in (1, 2, 4, 6, 12, 16)
    for kernel, stride, pad in [((1, 1), (2, 2), 0), ((1, 1), (3, 1), 0), ((3, 3), (2, 2), 1)]
]


def drawn(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    # Whole numbers, as codes are: sums are exact in whatever order.
    values = torch.randint(-9, 10, shape, generator=draw).float()
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(("channels", "kernel", "stride", "pad"), CASES)
def test_values_and_gradients_are_those_of_float64(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], pad: int
) -> None:
    x, weight = drawn(9, channels, 14, 11), drawn(8, channels, *kernel)
    bias = torch.arange(8.0).requires_grad_()
    learned = [x, weight, bias]
    y = OPERATORS["Conv"](*learned, strides=stride, pads=(pad,) * 4, kernel_shape=kernel)
    assert isinstance(y, Tensor)
    upstream = drawn(*y.shape).detach()
    exact = [tensor.detach().double().contiguous().requires_grad_() for tensor in learned]
    expected = F.conv2d(*exact, stride=stride, padding=pad)  # pyright: ignore
    assert torch.equal(y.double(), expected)
    gradients = torch.autograd.grad(y, learned, upstream)
    for found, wanted in zip(
        gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert torch.equal(found.double(), wanted)
