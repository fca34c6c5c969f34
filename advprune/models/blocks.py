"""Residual blocks, shared by every network here that has them. (N, I, H, W) -> (N, O, H/s, W/s)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """No bias: a batch norm follows or precedes."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _changes_shape(inputs: int, outputs: int, stride: int) -> bool:
    return stride != 1 or inputs != outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, "Deep residual learning", fig. 2).

    Where the shape changes, the shortcut is a 1x1 convolution with batch norm (option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                    bn=nn.BatchNorm2d(outputs),
                )
            )
            if _changes_shape(inputs, outputs, stride)
            else nn.Identity()
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class PreactBlock(nn.Module):
    """Batch norm and ReLU before each 3x3 convolution (He et al. 2016, "Identity mappings").

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            if _changes_shape(inputs, outputs, stride)
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def stages(
    block: type[BasicBlock] | type[PreactBlock],
    inputs: int,
    widths: Sequence[int],
    depth: int,
) -> nn.Sequential:
    """`depth` blocks at each width; every stage but the first halves height and width."""
    stack = nn.Sequential()
    for stage, width in enumerate(widths):
        for position in range(depth):
            halve = stage > 0 and position == 0
            stack.append(block(inputs, width, 2 if halve else 1))
            inputs = width
    return stack


def head(features: int, classes: int) -> OrderedDict[str, nn.Module]:
    """(N, F, H, W) -> raw logits (N, K): average over space, then one linear layer."""
    return OrderedDict(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(1),
        linear=nn.Linear(features, classes),
    )
