"""Residual networks (He et al. 2016, "Deep residual learning for image recognition")."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from advprune.models.blocks import BasicBlock, conv3x3, head, stages
from advprune.models.registry import register


def _resnet(classes: int, channels: int, widths: Sequence[int], depth: int) -> nn.Module:
    """A 3x3 stem, `depth` basic blocks at each width, and the head."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv3x3(channels, widths[0]),
            bn1=nn.BatchNorm2d(widths[0]),
            relu1=nn.ReLU(),
            blocks=stages(BasicBlock, widths[0], widths, depth),
            **head(widths[-1], classes),
        )
    )


@register
def digits_resnet(classes: int, channels: int) -> nn.Module:
    """ResNet-8 of widths 32, 64, 128, 0.31 M weights; for small images from 8x8."""
    return _resnet(classes, channels, (32, 64, 128), depth=1)


@register
def resnet18(classes: int, channels: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no max-pool, 11.2 M weights; for 32x32 images."""
    return _resnet(classes, channels, (64, 128, 256, 512), depth=2)


@register
def resnet20(classes: int, channels: int) -> nn.Module:
    """ResNet-20 of the CIFAR experiments, projection shortcuts, 0.27 M weights; for 32x32 images.

    The paper's zero-padded shortcuts (option A) hold no weights; these 1x1 convolutions (option B)
    add 2,560, and every network here then shares one block.
    """
    return _resnet(classes, channels, (16, 32, 64), depth=3)
