"""Operations are counted as torch's own counter does, forward and backward, and by type."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advprune.flops import Flops


def step(net: nn.Module, x: torch.Tensor) -> None:
    net(x).square().sum().backward()


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def test_the_count_of_a_step_is_that_of_torch() -> None:
    net, x = conv_net(), torch.rand(4, 3, 8, 8)
    reference = FlopCounterMode(display=False)
    with reference:
        step(net, x)
    with Flops() as flops:
        step(net, x)
    # By hand: 2 per multiply-add; the images need no gradient, so the first layer has one product
    # less in its backward.
    convolution, linear = 2 * 4 * 8 * 36 * 27, 2 * 4 * 288 * 5
    assert flops.by_type == {"float32": 2 * convolution + 3 * linear}
    assert flops.by_type["float32"] == reference.get_total_flops()


def test_each_type_is_counted_for_itself() -> None:
    net, x = conv_net(), torch.rand(4, 3, 8, 8)
    with Flops() as flops:
        with torch.no_grad():
            net(x)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            net(x)
    assert flops.by_type["bfloat16"] == flops.by_type["float32"] > 0


def test_what_is_counted_is_what_would_have_been_computed() -> None:
    net, x = conv_net(), torch.rand(4, 3, 8, 8)
    plain = net(x)
    with Flops():
        assert torch.equal(net(x), plain)
