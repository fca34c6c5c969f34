"""A folded network answers as the network does, and leaves it alone."""

import pytest
import torch
from attack_nets import conv_net, images
from torch import Tensor, nn

from advprune.folding import folded
from advprune.models import Architecture, build


def settled(model: str) -> tuple[nn.Module, Tensor]:
    """A network whose batch norms have statistics worth folding, and images for it."""
    side = 28 if "lenet" in model else 32
    channels = 1 if "digits" in model or "lenet" in model else 3
    net = build(
        Architecture(model, 10, (channels, side, side), (0.4,) * channels, (0.3,) * channels)
    )
    generator = torch.Generator().manual_seed(1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.1, generator=generator)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    return net, images(4, (channels, side, side))


@pytest.mark.parametrize("model", ["digits_resnet", "resnet20", "lenet5_caffe", "preact_resnet18"])
def test_answers_and_gradients_are_those_of_the_network(model: str) -> None:
    net, x = settled(model)
    copy = folded(net, x)
    net.eval()
    x.requires_grad_(True)
    expected, got = net(x), copy(x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    slopes = [torch.autograd.grad(logits.square().sum(), x)[0] for logits in (expected, got)]
    assert torch.allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-4 * float(slopes[0].abs().max()))


def test_batch_norms_are_gone() -> None:
    net, x = settled("resnet20")
    kinds = [type(module) for module in folded(net, x).modules()]
    assert nn.BatchNorm2d in [type(module) for module in net.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Conv2d) == [type(module) for module in net.modules()].count(nn.Conv2d)


def test_the_network_is_left_as_it_was() -> None:
    net = conv_net(norm=True, dropout=0.5).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    copy = folded(net, images(3))
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(module.training for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert torch.equal(net.state_dict()["0.weight"], before["0.weight"])


class Branching(nn.Module):
    """Its graph depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Drawing(nn.Module):
    """No two answers are alike, so nothing answers as it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.rand(1)


class Viewing(nn.Module):
    """Takes the values of a map as they lie in memory, in channels-first order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(len(x), -1)


@pytest.mark.parametrize("net", [Branching(), Drawing(), Viewing()])
def test_what_cannot_be_traced_is_copied_as_it_is(net: nn.Module) -> None:
    copy = folded(net, images(3))
    assert type(copy) is type(net)
    assert copy is not net
