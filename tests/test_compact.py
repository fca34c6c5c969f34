"""Without its dead channels a network is smaller and the same."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy import make_images, make_net, make_task, same, snapshot

from advprune.channel_units import ChannelUnits
from advprune.errors import BadData, Incompatible
from advprune.evaluate import predict
from advprune.masking import prunable_weights
from advprune.models import Architecture, build
from advprune.models.checkpoint import ARCHITECTURE, load, save
from advprune.stats import macs, parameter_count
from export.compact import check_same, compact

SHAPE = make_task().shape


def masked(sparsity: float = 0.5) -> nn.Module:
    net = make_net()
    units = ChannelUnits(net, SHAPE, "filter", 1, 1)
    norms = units.norms(prunable_weights(net))
    masks = units.select(norms, units.counts("uniform", norms, sparsity))
    with torch.no_grad():
        for name, weight in prunable_weights(net).items():
            weight *= masks[name]
    return net


def test_dead_channels_go_and_the_function_stays() -> None:
    net = masked()
    before = snapshot(net)
    small = compact(net, SHAPE)
    assert small.groups == (
        ("network.conv1.weight", 8, 4),
        ("network.conv2.weight", 16, 8),
        ("network.conv3.weight", 20, 10),
    )
    assert small.widths["network.conv2"] == (8, 4)
    assert small.widths["network.bn2"] == (8, 8)
    assert small.widths["network.fc"] == (3, 10)
    assert small.parameters == (parameter_count(net), parameter_count(small.net))
    assert small.parameters[1] == 4 * 9 + 8 + 8 * 4 * 9 + 16 + 10 * 8 + 10 + 3 * 10 + 3
    assert small.macs == (macs(net, SHAPE), macs(small.net, SHAPE))
    images = make_images(val=60).val.images
    assert check_same(net, small.net, images) <= 1e-5
    assert torch.equal(predict(net, images).argmax(1), predict(small.net, images).argmax(1))
    assert same(snapshot(net), before)
    # In training mode it is the same function too: batch norm sees the same values.
    x = images.float() / 255
    assert torch.allclose(copy.deepcopy(net)(x), copy.deepcopy(small.net)(x), atol=1e-4)


def test_scattered_zeros_are_no_dead_channels() -> None:
    net = make_net()
    with torch.no_grad():
        for name, weight in prunable_weights(net).items():
            if name == "network.fc.weight":
                continue  # of three weights that read a channel all may go by chance
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
    small = compact(net, SHAPE)
    assert small.widths == {}
    assert small.parameters[0] == small.parameters[1]


def test_a_channel_that_is_made_of_zeros_but_read_still_has_its_bias_and_stays() -> None:
    net = make_net()
    with torch.no_grad():
        prunable_weights(net)["network.conv2.weight"][3] = 0
    small = compact(net, SHAPE)
    assert small.groups[1] == ("network.conv2.weight", 16, 16)


def test_an_empty_layer_is_refused_by_name() -> None:
    net = make_net()
    with torch.no_grad():
        prunable_weights(net)["network.conv3.weight"].zero_()
    with pytest.raises(BadData, match=r"none of the 16 channels of network\.conv2\.weight is read"):
        compact(net, SHAPE)


def test_a_network_that_is_not_the_same_is_refused() -> None:
    net, other = masked(), masked()
    with torch.no_grad():
        other.get_submodule("network.fc").get_parameter("bias")[0] += 0.01
    images = make_images().val.images
    with pytest.raises(Incompatible, match=r"logits differ by 0\.01"):
        check_same(net, other, images)
    with torch.no_grad():
        other.get_submodule("network.fc").get_parameter("bias")[0] += 1e3
    with pytest.raises(Incompatible, match=r"gives \d+ of 30 images another class"):
        check_same(net, other, images)


def test_what_cannot_be_traced_or_cut_is_refused_by_name() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.GroupNorm(2, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).mean(dim=(2, 3)))

    with pytest.raises(Incompatible, match="no layer of this network, from conv to head, has"):
        compact(Mixed(), (1, 6, 6))

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 2:
                raise RuntimeError("two images are not welcome")
            return self.head(self.first(x).mean(dim=(2, 3)))

    with pytest.raises(Incompatible, match=r"from first to head\.weight, cannot be traced \(Run"):
        compact(Branching(), (1, 6, 6))


def test_a_small_network_is_read_again_without_knowing_what_was_cut(tmp_path: Path) -> None:
    shape = (1, 8, 8)
    architecture = Architecture("digits_resnet", 10, shape, (0.5,), (0.25,))
    net = build(architecture, seed=3).eval()
    units = ChannelUnits(net, shape, "channel", 8, 8)
    norms = units.norms(prunable_weights(net))
    masks = units.select(norms, units.counts("global", norms, 0.6))
    with torch.no_grad():
        for name, weight in prunable_weights(net).items():
            weight *= masks[name]
    small = compact(net, shape)
    save(small.net, replace(architecture, widths=small.widths), tmp_path)
    written = json.loads((tmp_path / ARCHITECTURE).read_text())
    assert written["widths"]["network.conv1"] == list(small.widths["network.conv1"])
    assert not list(tmp_path.glob("*.p*"))  # no pickles
    again = load(tmp_path).eval()
    x = torch.rand(5, *shape)
    with torch.no_grad():
        assert torch.equal(again(x), small.net(x))
        assert torch.allclose(again(x), net(x), atol=1e-5)
