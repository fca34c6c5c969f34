"""Normalisation as the first layer, so that attacks and exported graphs see pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std, per channel.

    The two buffers are part of the state dict: weights mean nothing without the statistics that
    they were trained under.

    Args:
        mean: C values, in units of pixels in [0, 1].
        std: C values above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
