"""VGG networks (Simonyan and Zisserman 2015) in the form that the pruning papers use."""

from collections import OrderedDict

from torch import nn

from advprune.models.blocks import head
from advprune.models.registry import register

# Configuration D of the paper; a max-pool ends each group.
_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@register
def vgg16_bn(classes: int, channels: int) -> nn.Module:
    """VGG-16 with batch norm and one linear layer, 14.7 M weights; for images from 32x32."""
    features = nn.Sequential()
    inputs = channels
    for group in _GROUPS:
        for width in group:
            features.append(nn.Conv2d(inputs, width, 3, padding=1))
            features.append(nn.BatchNorm2d(width))
            features.append(nn.ReLU())
            inputs = width
        features.append(nn.MaxPool2d(2))
    return nn.Sequential(OrderedDict(features=features, **head(inputs, classes)))
