"""Learned masks of channels act on everything that reads them, and leave no trace."""

import torch
from torch import Tensor, nn
from toy import make_net, make_task, snapshot

from advprune.channel_masking import attach_channels, detach_channels, learned
from advprune.channels import ChannelGroup
from advprune.coupling import couple
from advprune.masking import Scored, refresh
from advprune.models import Architecture, build
from advprune.rates import Rated, rated


class Branches(nn.Module):
    """Two layers side by side, read together, and a layer that is read pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 1)
        self.right = nn.Conv2d(1, 6, 1)
        self.both = nn.Conv2d(10, 5, 3, bias=False)
        self.head = nn.Linear(5 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], dim=1).relu()
        return self.head(self.both(both).relu().flatten(1))


def masked(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, ChannelGroup]:
    groups = {group.name: group for group in couple(net, shape)}
    attach_channels(net, groups.values(), lambda g: Scored(torch.ones(g.width), g.width // 2))
    return groups


def test_masked_columns_are_those_of_every_reader() -> None:
    net, plain = Branches().eval(), Branches().eval()
    plain.load_state_dict(net.state_dict())
    groups = masked(net, (1, 4, 4))
    assert set(learned(net)) == {"left.weight", "right.weight", "both.weight"}
    for name, scored in learned(net).items():
        scored.scores.data = torch.rand(groups[name].width)
    refresh(net)
    with torch.no_grad():
        for name, scored in learned(net).items():
            for slot in groups[name].readers:
                weight = plain.get_submodule(slot.layer).get_parameter("weight")
                weight[:, slot.index[~scored.mask].flatten()] = 0
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(net(x), plain(x))
    assert not torch.equal(net(x), Branches()(x))


def test_the_gradient_of_a_channel_is_the_sum_over_all_that_reads_it() -> None:
    net = Branches().eval()
    groups = masked(net, (1, 4, 4))
    x = torch.rand(3, 1, 4, 4)
    net(x).square().sum().backward()
    effective: dict[str, Tensor] = {}
    for layer in ("both", "head"):
        module = net.get_submodule(layer)
        effective[layer] = module.weight.detach().clone().requires_grad_()  # pyright: ignore
    plain = Branches().eval()
    state = {k: v for k, v in net.state_dict().items() if "parametrizations" not in k}
    values = state | {f"{layer}.weight": w for layer, w in effective.items()}
    logits = torch.func.functional_call(plain, values, (x,))
    gradients = dict(
        zip(
            effective,
            torch.autograd.grad(logits.square().sum(), list(effective.values())),
            strict=True,
        )
    )
    for name, scored in learned(net).items():
        expected = torch.zeros(groups[name].width)
        for slot in groups[name].readers:
            original = net.get_parameter(f"{slot.layer}.parametrizations.weight.original").detach()
            columns = (original * gradients[slot.layer]).movedim(1, 0).flatten(1).sum(1)
            expected += columns[slot.index].sum(dim=1)
        assert scored.scores.grad is not None
        assert torch.allclose(scored.scores.grad, expected, rtol=1e-4, atol=1e-5), name


def test_one_mask_serves_a_residual_stream_and_is_learned_once() -> None:
    net = build(Architecture("digits_resnet", 10, (1, 8, 8), (0.5,), (0.25,)))
    groups = {group.name: group for group in couple(net, (1, 8, 8))}
    attach_channels(net, groups.values(), lambda g: Rated(torch.rand(g.width), 4, 0.3, 0.01))
    assert set(rated(net)) == set(groups)
    scores = [p for name, p in net.named_parameters() if name.endswith("scores")]
    assert len(scores) == len(groups) == 6
    assert len(groups["network.conv1.weight"].readers) == 3
    # Colours and logits belong to no one.
    read = {slot.layer for group in groups.values() for slot in group.readers}
    made = {slot.layer for group in groups.values() for slot in group.makers}
    assert "network.conv1" not in read
    assert "network.linear" not in made


def test_taken_off_again_the_network_is_as_it_was() -> None:
    net = make_net()
    before, kind = snapshot(net), type(net.get_submodule("network.conv2"))
    attach_channels(net, couple(net, make_task().shape), lambda g: Scored(torch.ones(g.width), 1))
    assert type(net.get_submodule("network.conv2")) is not kind
    detach_channels(net)
    assert type(net.get_submodule("network.conv2")) is kind
    after = snapshot(net)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
