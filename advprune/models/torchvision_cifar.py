"""torchvision's networks with stems for 32x32 images, which theirs would shrink to one pixel.

torchvision is imported where it is used: that takes longer than a command without it may take.
"""

from torch import nn

from advprune.models.blocks import conv3x3
from advprune.models.registry import register

# Expansion, output channels, blocks, stride (Sandler et al. 2018, table 2). With the stem they
# divide height and width by 32 in the paper and by 8 here: the stride of the 24 channels is 1.
_MOBILENET_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


@register
def googlenet_cifar(classes: int, channels: int) -> nn.Module:
    """GoogLeNet (Szegedy et al. 2015) with batch norm, 5.6 M weights; for 32x32 images.

    No auxiliary heads; a 3x3 stem and none of the first two max-pools.
    """
    from torchvision.models import GoogLeNet

    # Their own first weights are left out: every network here starts from `he_`.
    net = GoogLeNet(classes, aux_logits=False, init_weights=False)
    net.conv1.set_submodule("conv", conv3x3(channels, 64))
    net.set_submodule("maxpool1", nn.Identity())
    net.set_submodule("maxpool2", nn.Identity())
    return net


@register
def mobilenet_v2_cifar(classes: int, channels: int) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018), depthwise convolutions, 2.2 M weights; for 32x32 images.

    Stride 1 in the stem and in the first stage that has another one.
    """
    from torchvision.models import MobileNetV2

    net = MobileNetV2(classes, inverted_residual_setting=_MOBILENET_STAGES)
    net.set_submodule("features.0.0", conv3x3(channels, 32))
    return net
