"""Gates act on all that reads a channel, alike in every kind of network, and fold away."""

import copy

import pytest
import torch
from gated_nets import NAMES, gated_net, images_for, shape_of, widths_of
from oracles import anp_vs as oracle
from torch import Tensor, nn
from toy import generator, same, snapshot

from advprune.channels import ChannelGroup, remove
from advprune.coupling import couple
from advprune.errors import Incompatible
from advprune.gating import Gating, gating_of
from advprune.repro import seeded

every_net = pytest.mark.parametrize("name", NAMES)


def gated(name: str) -> tuple[nn.Module, list[ChannelGroup], Gating]:
    """A network in eval mode with a random gate on every channel, a third of them shut."""
    net = gated_net(name)
    groups = couple(net, shape_of(name))
    assert sorted(group.width for group in groups) == sorted(widths_of(name))
    gating = Gating(net, groups, [], start=2.0).eval()
    values = torch.rand(len(gating.a_uc), generator=generator(1))
    gating.settled.copy_(values * (torch.arange(len(values)) % 3 > 0))
    return net, groups, gating


def multiplied(net: nn.Module, groups: list[ChannelGroup], gates: Tensor) -> nn.Module:
    """The columns that read each channel times its gate, one by one."""
    twin, position = copy.deepcopy(net), 0
    for group in groups:
        for channel in range(group.width):
            for slot in group.readers:
                for column in slot.index[channel].tolist():
                    twin.get_parameter(slot.weight).data[:, column] *= gates[position]
            position += 1
    assert position == len(gates)
    return twin


@every_net
@torch.no_grad()
def test_a_gate_multiplies_what_is_read_of_its_channel(name: str) -> None:
    plain, x = gated_net(name), images_for(name)
    net, groups, gating = gated(name)
    expected = multiplied(plain, groups, gating.settled)(x)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, plain(x), atol=1e-2)


@torch.no_grad()
def test_that_is_a_gate_behind_the_relu() -> None:
    net, x = gated_net("plain"), images_for("plain")
    z = torch.rand(3, 44, generator=generator(2))
    expected, _ = oracle.forward(net, x, list(z.split([8, 16, 20], dim=1)))
    gating = Gating(net, couple(net, shape_of("plain")), [], start=2.0)
    for image in range(3):
        gating.settled.copy_(z[image])
        torch.testing.assert_close(net(x)[image], expected[image], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_that_is_a_gate_before_the_max_pool_and_the_flattening() -> None:
    net, x = gated_net("flattened"), images_for("flattened")
    layers = dict(net.named_children())
    z = torch.rand(14, generator=generator(2))
    pooled = layers["pool"](layers["conv"](x).relu() * z[:5, None, None])
    hidden = layers["bn"](layers["linear1"](pooled.flatten(1))).relu() * z[5:]
    expected = layers["linear2"](hidden)
    gating = Gating(net, couple(net, shape_of("flattened")), [], start=2.0)
    gating.settled.copy_(z)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)


@every_net
@torch.no_grad()
def test_drawn_gates_belong_to_their_images(name: str) -> None:
    net, _, gating = gated(name)
    x = images_for(name)
    gating.train()
    with seeded(6), gating.drawn(len(x)):
        z, logits = gating(), net(x)
    assert z.shape == (3, len(gating.a_uc))
    for image in range(3):
        gating.settled.copy_(z[image])
        torch.testing.assert_close(net(x)[image], logits[image], rtol=1e-5, atol=1e-6)


@every_net
@torch.no_grad()
def test_folding_changes_no_logits_and_leaves_no_trace(name: str) -> None:
    net, _, gating = gated(name)
    x, parameters = images_for(name), {id(p) for p in gated_net(name).parameters()}
    logits = net(x)
    plain = gated_net(name)
    gating.fold(net, gating.settled.clone())
    torch.testing.assert_close(net(x), logits, rtol=1e-5, atol=1e-6)
    assert [key for key, _ in net.named_modules()] == [key for key, _ in plain.named_modules()]
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert len(list(net.parameters())) == len(parameters)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    # What made the channels is as it was.
    readers = {slot.weight for group in couple(plain, shape_of(name)) for slot in group.readers}
    rest = {key: value for key, value in snapshot(plain).items() if key not in readers}
    assert rest
    assert same({key: snapshot(net)[key] for key in rest}, rest)


@every_net
@torch.no_grad()
def test_channels_with_shut_gates_can_be_cut_out(name: str) -> None:
    net, groups, gating = gated(name)
    x, settled = images_for(name), gating.settled.clone()
    logits = net(x)
    gating.fold(net, settled)
    kept = {key: gates > 0 for key, gates in gating.split(settled).items()}
    assert not any(mask.all() for mask in kept.values())
    before = sum(p.numel() for p in net.parameters())
    remove(net, groups, kept)
    torch.testing.assert_close(net(x), logits, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) < before


@every_net
def test_parameters_and_checkpoints_of_the_network_have_the_gates(name: str) -> None:
    net, _, gating = gated(name)
    assert gating_of(net) is gating
    mine = {id(p) for p in gating.parameters()}
    assert [id(p) in mine for p in net.parameters()].count(True) == 2
    keys = set(net.state_dict()) - set(gated_net(name).state_dict())
    assert {key.rsplit(".", 1)[1] for key in keys} == {"a_uc", "b_uc", "settled"}
    assert len(keys) == 3
    other, _, gating_2 = gated(name)
    gating.a_uc.data.fill_(0.7)
    gating.settled.fill_(0.3)
    other.load_state_dict(net.state_dict(), strict=True)
    assert gating_2.a_uc.unique().tolist() == pytest.approx([0.7])
    assert torch.equal(other(images_for(name)), net(images_for(name)))


class Patches(nn.Module):
    """Reads each image in four pieces, as if they were images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 6)
        self.second = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.reshape(-1, 16)).relu()).reshape(len(x), 4, 4).mean(dim=1)


def test_a_layer_that_does_not_read_images_one_by_one_is_refused() -> None:
    net = Patches()
    gating = Gating(net, couple(net, (1, 8, 8)), [], start=2.0)
    x = torch.rand(3, 1, 8, 8)
    assert net(x).shape == (3, 4)
    with (
        gating.drawn(3),
        pytest.raises(Incompatible, match="layer second reads 12 rows for 3 images"),
    ):
        net(x)


@torch.no_grad()
def test_a_linear_layer_may_read_many_vectors_of_an_image() -> None:
    """(N, T, F), as in the perceptrons of a transformer."""
    net = nn.Sequential(nn.Flatten(2), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))
    net.append(nn.AvgPool2d((3, 1))).append(nn.Flatten())
    groups = couple(net, (3, 8, 8))
    x = images_for("joined")
    z = torch.rand(6, generator=generator(2))
    expected = net[4](net[3](net[1](x.flatten(2)).relu() * z)).flatten(1)
    gating = Gating(net, groups, [], start=2.0)
    gating.settled.copy_(z)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
