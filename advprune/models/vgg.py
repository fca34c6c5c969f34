"""VGG networks (Simonyan and Zisserman 2015) in the forms that the pruning papers use."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from advprune.models.blocks import head
from advprune.models.registry import register

# Configuration D of the paper; a max-pool ends each group.
_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_FEATURES = _GROUPS[-1][-1]


def _convolutions(
    channels: int, *, bias: bool = True, dropout: Sequence[float] = (0, 0, 0, 0, 0)
) -> nn.Sequential:
    """13 convolutions with batch norm and ReLU, (N, C, H, W) -> (N, 512, H/32, W/32).

    Args:
        dropout: one rate for each group, behind every convolution of it but the last.
    """
    layers = nn.Sequential()
    inputs = channels
    for group, rate in zip(_GROUPS, dropout, strict=True):
        for position, width in enumerate(group, start=1):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=bias))
            layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            if rate and position < len(group):
                layers.append(nn.Dropout(rate))
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return layers


@register
def vgg16_bn(classes: int, channels: int) -> nn.Module:
    """VGG-16 with batch norm and one linear layer, 14.7 M weights; for images from 32x32."""
    return nn.Sequential(OrderedDict(features=_convolutions(channels), **head(_FEATURES, classes)))


@register
def vgg16_bn_fc3(classes: int, channels: int) -> nn.Module:
    """VGG-16 of HYDRA and HARP, three linear layers, 15.3 M weights; for 32x32 images.

    Sehwag et al. 2020 and Zhao and Wressnegger 2023: convolutions without bias, and no max-pool
    after the last group, so that 32x32 images leave 2x2 pixels.
    """
    return nn.Sequential(
        OrderedDict(
            features=_convolutions(channels, bias=False)[:-1],
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(1),
            linear1=nn.Linear(_FEATURES * 2 * 2, 256),
            relu1=nn.ReLU(),
            linear2=nn.Linear(256, 256),
            relu2=nn.ReLU(),
            linear3=nn.Linear(256, classes),
        )
    )


@register
def vgg16_bn_drop(classes: int, channels: int) -> nn.Module:
    """VGG-16 with dropout and two linear layers, 15.0 M weights; for 32x32 images.

    Zagoruyko 2015, "92.45% on CIFAR-10 in Torch"; the VGG of GAP (greedy adversarial pruning, 2022)
    and of ANP-VS (Madaan et al. 2020).
    """
    return nn.Sequential(
        OrderedDict(
            features=_convolutions(channels, dropout=(0.3, 0.4, 0.4, 0.4, 0.4)),
            flatten=nn.Flatten(1),
            drop1=nn.Dropout(0.5),
            linear1=nn.Linear(_FEATURES, 512),
            bn=nn.BatchNorm1d(512),
            relu=nn.ReLU(),
            drop2=nn.Dropout(0.5),
            linear2=nn.Linear(512, classes),
        )
    )


@register
def vgg16_bn_avg(classes: int, channels: int) -> nn.Module:
    """VGG-16 of MAD, an average in place of the last max-pool, 14.7 M weights; for 32x32 images.

    Lee et al. 2022: convolutions without bias.
    """
    features = _convolutions(channels, bias=False)[:-1]
    return nn.Sequential(OrderedDict(features=features, **head(_FEATURES, classes)))


@register
def vgg16_bn_avg_fc2(classes: int, channels: int) -> nn.Module:
    """VGG-16 of Li et al. 2020, an average and two linear layers, 15.0 M weights; for 32x32 images.

    "Towards Practical Lottery Ticket Hypothesis for Adversarial Training": convolutions without
    bias, batch norm between the linear layers.
    """
    return nn.Sequential(
        OrderedDict(
            features=_convolutions(channels, bias=False)[:-1],
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
            linear1=nn.Linear(_FEATURES, 512),
            bn=nn.BatchNorm1d(512),
            relu=nn.ReLU(),
            linear2=nn.Linear(512, classes),
        )
    )
