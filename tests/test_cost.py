"""What a budget believes a network costs is what the network then costs."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advprune.channels import ChannelGroup, remove
from advprune.cost import Cost, of_macs, of_sizes
from advprune.coupling import couple
from advprune.models import Architecture, build
from advprune.stats import layer_macs, macs

SHAPES = {
    "digits_resnet": (1, 8, 8),  # residual streams
    "googlenet_cifar": (3, 32, 32),  # concatenations
    "mobilenet_v2_cifar": (3, 32, 32),  # depthwise
    "vgg16_bn_fc3": (3, 32, 32),  # a flatten of four pixels
    "lenet5_caffe": (1, 28, 28),
}


@functools.cache
def traced(model: str) -> tuple[nn.Module, list[ChannelGroup], Cost]:
    shape = SHAPES[model]
    net = build(Architecture(model, 10, shape, (0.5,) * shape[0], (0.25,) * shape[0])).eval()
    groups = couple(net, shape)
    return net, groups, of_macs(net, groups, shape)


@pytest.mark.parametrize("model", SHAPES)
@settings(deadline=None, max_examples=3)
@given(st.integers(0, 10**6))
def test_the_share_of_macs_is_that_of_the_network_that_was_cut(model: str, seed: int) -> None:
    net, groups, cost = traced(model)
    draw = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        kept[group.name] = torch.rand(group.width, generator=draw) < torch.rand(1, generator=draw)
        kept[group.name][0] = True
    small = copy.deepcopy(net)
    remove(small, groups, kept)
    share = macs(small, SHAPES[model]) / macs(net, SHAPES[model])
    counts = {name: int(alive.sum()) for name, alive in kept.items()}
    sizes = {group.name: group.width for group in groups}
    assert cost.of(counts, sizes) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("model", SHAPES)
def test_all_of_it_costs_one_and_half_of_it_between_a_quarter_and_a_half(model: str) -> None:
    _, _, cost = traced(model)
    assert cost.uniform(1.0) == pytest.approx(1.0, abs=1e-12)
    # Inputs and outputs halve together, but for the colours, the logits and what cannot be cut.
    assert 0.25 < cost.uniform(0.5) <= 0.55
    densities = torch.rand(len(cost.names), dtype=torch.float64, requires_grad=True)
    cost(densities).backward()
    assert densities.grad is not None and (densities.grad > 0).all()


def test_sizes_cost_their_share() -> None:
    cost = of_sizes({"a": 30, "b": 10})
    assert cost.uniform(0.3) == pytest.approx(0.3)
    assert cost.of({"a": 3, "b": 10}, {"a": 30, "b": 10}) == pytest.approx(13 / 40)
    assert float(cost(torch.tensor([0.5, 0.1]))) == pytest.approx((15 + 1) / 40)


def test_a_cost_is_what_its_tensors_say() -> None:
    _, _, cost = traced("digits_resnet")
    again = Cost(cost.names, *cost.tensors().values())
    assert again.uniform(0.4) == cost.uniform(0.4)


def test_macs_of_a_network_are_those_of_its_layers() -> None:
    net, _, _ = traced("digits_resnet")
    by_layer = layer_macs(net, (1, 8, 8))
    assert sum(by_layer.values()) == macs(net, (1, 8, 8))
    assert by_layer["network.conv1.weight"] == 32 * 9 * 64
