"""A network of one's own, to be named as `--model own_network:plates`; see docs/own-model.md.

Nothing of it knows of the pipeline: it is a plain torch module, as it may lie in any project.
"""

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Squeeze-and-excite: each channel is scaled by a number that all of the image decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))


class Block(nn.Module):
    """A residual block: wide, depthwise, gated, and narrow again, scaled by what it learned."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.gate = Gate(wide)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.expand(x)))
        y = torch.relu(self.bn2(self.depthwise(y)))
        return x + self.scale * self.bn3(self.project(self.gate(y)))


class Plates(nn.Module):
    """Colour images of at least 16x16 pixels to logits, without softmax."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block = Block(width, 2 * width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=4, bias=False)
        self.grouped_bn = nn.BatchNorm2d(2 * width)
        self.mix = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.mix_bn = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = self.block(x)
        x = torch.relu(self.grouped_bn(self.grouped(x)))
        x = torch.relu(self.mix_bn(self.mix(x)))
        return self.head(x.mean((2, 3)))


def plates(num_classes: int, in_channels: int = 3) -> nn.Module:
    """What `--model own_network:plates` calls: the numbers come from the images."""
    return Plates(num_classes, in_channels)
