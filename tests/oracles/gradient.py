"""Gradient pruning one image at a time, and ShrinkBench's score of one minibatch."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles.gap import weights_of


def absolute_sum(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Equation 3 of the GAP paper: the sum over images of |dL/dtheta|, in float64."""
    net = copy.deepcopy(net).double().eval()
    total = {name: torch.zeros_like(weight) for name, weight in weights_of(net).items()}
    for image, label in zip(images, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image[None].double()), label[None]).backward()
        for name, weight in weights_of(net).items():
            assert weight.grad is not None
            total[name] += torch.abs(weight.grad)
    return total


def shrinkbench(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """|theta g| with g of the mean loss of one minibatch, batch norm by the batch."""
    net = copy.deepcopy(net).train()
    net.zero_grad()
    nn.CrossEntropyLoss()(net(images), labels).backward()
    found = {}
    for name, weight in weights_of(net).items():
        assert weight.grad is not None
        found[name] = torch.abs(weight.detach() * weight.grad)
    return found
