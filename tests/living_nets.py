"""Networks in which every channel shows, for tests that take channels out."""

import copy
import re
from functools import cache

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from advprune import models
from advprune.channels import ChannelGroup, remove
from advprune.coupling import couple
from advprune.models import Architecture
from advprune.repro import seeded

Kept = dict[str, Tensor]


# torchvision's classifiers whose channels can be removed, and images that are large enough.
TORCHVISION = {
    "alexnet": 64,
    "vgg11": 32,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "squeezenet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mnasnet0_5": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
}


def arch(model: str) -> Architecture:
    """With images of the size that the network says it is made for."""
    described = models.describe().get(model)
    side = int(re.findall(r"(\d+)x\1", described)[-1]) if described else TORCHVISION[model]
    return Architecture(model, 10, (3, side, side), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@cache
def living(model: str) -> nn.Sequential:
    """In eval mode, with statistics of real activations, and biases and gains all different.

    Shared by the tests: do not change it.
    """
    net = models.build(arch(model))
    with torch.no_grad(), seeded(3):
        net(noise(model, 8))  # in training mode: moves the statistics of batch norms
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1 or "layer_scale" in name:
                parameter.uniform_(0.5, 1.5)
    return net.eval()


@cache
def coupled(model: str) -> list[ChannelGroup]:
    return couple(living(model), arch(model).shape)


def noise(model: str, count: int) -> Tensor:
    return torch.rand(count, *arch(model).shape, generator=torch.Generator().manual_seed(1))


def some_kept(groups: list[ChannelGroup], shares: list[float], seed: int) -> Kept:
    """A random part of each group, of at least one channel."""
    draw = torch.Generator().manual_seed(seed)
    kept = {}
    for group, share in zip(groups, shares, strict=True):
        kept[group.name] = torch.zeros(group.width, dtype=torch.bool)
        order = torch.randperm(group.width, generator=draw)
        kept[group.name][order[: max(1, round(share * group.width))]] = True
    return kept


def patterns(groups: list[ChannelGroup]) -> st.SearchStrategy[Kept]:
    """What to keep: of each group all, a part, or a single channel."""
    shares = st.lists(
        st.sampled_from([1.0, 0.6, 0.1, 0.0]), min_size=len(groups), max_size=len(groups)
    )
    return st.builds(some_kept, st.just(groups), shares, st.integers(0, 999))


def zeroed(net: nn.Module, groups: list[ChannelGroup], kept: Kept) -> nn.Module:
    """A copy in which rows that make a removed channel are zero, and columns that read it."""
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for group in groups:
            gone = ~kept[group.name]
            for slot in group.makers:
                masked.get_parameter(slot.weight)[slot.index[gone].flatten()] = 0.0
            for slot in group.readers:
                masked.get_parameter(slot.weight)[:, slot.index[gone].flatten()] = 0.0
    return masked


def smaller(net: nn.Module, groups: list[ChannelGroup], kept: Kept) -> nn.Module:
    small = copy.deepcopy(net)
    remove(small, groups, kept)
    return small
