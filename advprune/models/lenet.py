"""LeNet-5 (LeCun et al. 1998) as Caffe's examples have it, the network of pruning papers' MNIST."""

from collections import OrderedDict

from torch import nn

from advprune.models.registry import register


@register
def lenet5_caffe(classes: int, channels: int) -> nn.Module:
    """LeNet-5 of Caffe, two convolutions and two linear layers, 0.43 M weights; for 28x28 images.

    With a ReLU after each convolution, as in ANP-VS (Madaan et al. 2020); Caffe has only the one
    after the first linear layer.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(1),
            linear1=nn.Linear(50 * 4 * 4, 500),
            relu3=nn.ReLU(),
            linear2=nn.Linear(500, classes),
        )
    )
