"""Pre-activation residual networks: the last block ends in a sum, so one norm and ReLU follow."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from advprune.models.blocks import PreactBlock, conv3x3, head, stages
from advprune.models.registry import register


def _preact(classes: int, channels: int, stem: int, widths: Sequence[int], depth: int) -> nn.Module:
    """A 3x3 stem, `depth` pre-activation blocks at each width, norm, ReLU, and the head."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv3x3(channels, stem),
            blocks=stages(PreactBlock, stem, widths, depth),
            bn=nn.BatchNorm2d(widths[-1]),
            relu=nn.ReLU(),
            **head(widths[-1], classes),
        )
    )


@register
def preact_resnet18(classes: int, channels: int) -> nn.Module:
    """Pre-activation ResNet-18 (He et al. 2016), 11.2 M weights; for 32x32 images."""
    return _preact(classes, channels, 64, (64, 128, 256, 512), depth=2)


@register
def wrn28_4(classes: int, channels: int) -> nn.Module:
    """Wide ResNet-28-4 (Zagoruyko, Komodakis 2016), no dropout, 5.8 M weights; for 32x32 images."""
    return _preact(classes, channels, 16, (64, 128, 256), depth=4)
