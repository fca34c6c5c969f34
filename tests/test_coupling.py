"""Promise: channels that only go together are found together; what cannot go is in no group."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from living_nets import arch, coupled, living, smaller, some_kept, zeroed
from torch import Tensor, nn

from advprune import models
from advprune.channels import ChannelGroup, Slot
from advprune.coupling import couple
from advprune.errors import Incompatible
from advprune.models import Architecture, logits_layer, prunable
from advprune.repro import seeded
from advprune.surgery import depthwise, widths

every_model = pytest.mark.parametrize("name", models.names())


def names(slots: tuple[Slot, ...]) -> set[str]:
    return {slot.layer.removeprefix("network.") for slot in slots}


def by_name(name: str) -> dict[str, ChannelGroup]:
    return {group.name.removeprefix("network."): group for group in coupled(name)}


# Every registered network


@every_model
def test_every_row_and_column_but_logits_and_colours_is_in_one_group(name: str) -> None:
    net, groups = living(name), coupled(name)
    made: dict[str, list[int]] = {}
    read: dict[str, list[int]] = {}
    normed: dict[str, list[int]] = {}
    for group in groups:
        for slots, axis, found in (
            (group.makers, 0, made),
            (group.readers, 1, read),
            (group.norms, 0, normed),
        ):
            for slot in slots:
                assert slot.axis == axis and len(slot.index) == group.width
                found.setdefault(slot.layer, []).extend(slot.index.flatten().tolist())
    layers = {key.removesuffix(".weight"): layer for key, layer in prunable(net).items()}
    sizes = widths(net)
    expected_made = {layer: [*range(sizes[layer][0])] for layer in layers}
    expected_read = {
        layer: [*range(sizes[layer][1])] for layer, it in layers.items() if not depthwise(it)
    }
    expected_normed = {layer: [*range(size[0])] for layer, size in sizes.items()}
    del expected_made[logits_layer(net).removesuffix(".weight")]
    del expected_read[next(iter(layers))]
    for layer in layers:
        del expected_normed[layer]
    assert {layer: sorted(found) for layer, found in made.items()} == expected_made
    assert {layer: sorted(found) for layer, found in read.items()} == expected_read
    assert {layer: sorted(found) for layer, found in normed.items()} == expected_normed


@every_model
def test_a_group_is_named_after_its_first_layer_in_the_order_of_the_network(name: str) -> None:
    groups, order = coupled(name), list(prunable(living(name)))
    assert [group.name for group in groups] == [group.makers[0].weight for group in groups]
    found = [min(order.index(slot.weight) for slot in group.makers) for group in groups]
    assert found == sorted(found) == [order.index(group.name) for group in groups]


# One group for each residual stream


def test_the_groups_of_a_small_residual_network() -> None:
    found = {
        name: (group.width, names(group.makers), names(group.readers), names(group.norms))
        for name, group in by_name("digits_resnet").items()
    }
    shortcut = "blocks.{}.shortcut.{}".format
    assert found == {
        "conv1.weight": (
            32,
            {"conv1", "blocks.0.conv2"},
            {"blocks.0.conv1", "blocks.1.conv1", shortcut(1, "conv")},
            {"bn1", "blocks.0.bn2"},
        ),
        "blocks.0.conv1.weight": (
            32,
            {"blocks.0.conv1"},
            {"blocks.0.conv2"},
            {"blocks.0.bn1"},
        ),
        "blocks.1.conv1.weight": (
            64,
            {"blocks.1.conv1"},
            {"blocks.1.conv2"},
            {"blocks.1.bn1"},
        ),
        "blocks.1.conv2.weight": (
            64,
            {"blocks.1.conv2", shortcut(1, "conv")},
            {"blocks.2.conv1", shortcut(2, "conv")},
            {"blocks.1.bn2", shortcut(1, "bn")},
        ),
        "blocks.2.conv1.weight": (
            128,
            {"blocks.2.conv1"},
            {"blocks.2.conv2"},
            {"blocks.2.bn1"},
        ),
        "blocks.2.conv2.weight": (
            128,
            {"blocks.2.conv2", shortcut(2, "conv")},
            {"linear"},
            {"blocks.2.bn2", shortcut(2, "bn")},
        ),
    }


def test_the_groups_of_resnet18() -> None:
    groups = by_name("resnet18")
    inner = {f"blocks.{block}.conv1.weight": 64 << block // 2 for block in range(8)}
    streams = {
        "conv1.weight": 64,
        "blocks.2.conv2.weight": 128,
        "blocks.4.conv2.weight": 256,
        "blocks.6.conv2.weight": 512,
    }
    assert {name: group.width for name, group in groups.items()} == inner | streams
    for name in inner:
        block = name.removesuffix(".conv1.weight")
        assert names(groups[name].makers) == {f"{block}.conv1"}
        assert names(groups[name].readers) == {f"{block}.conv2"}
    for first, name in zip((0, 2, 4, 6), streams, strict=True):
        start = "conv1" if first == 0 else f"blocks.{first}.shortcut.conv"
        after = (f"blocks.{first + 2}.conv1", f"blocks.{first + 2}.shortcut.conv")
        within = {"blocks.0.conv1"} if first == 0 else set()
        assert names(groups[name].makers) == {
            start,
            f"blocks.{first}.conv2",
            f"blocks.{first + 1}.conv2",
        }
        assert names(groups[name].readers) == {
            f"blocks.{first + 1}.conv1",
            *within,
            *(after if first < 6 else ("linear",)),
        }


# Channels that lie elsewhere in what reads them


def test_what_reads_a_concatenation_reads_each_part_at_its_place() -> None:
    groups = by_name("googlenet_cifar")
    parts = {
        "inception3a.branch1.conv.weight": range(64),
        "inception3a.branch2.1.conv.weight": range(64, 192),
        "inception3a.branch3.1.conv.weight": range(192, 224),
        "inception3a.branch4.1.conv.weight": range(224, 256),
    }
    for name, places in parts.items():
        readers = {slot.layer: slot for slot in groups[name].readers}
        assert len(readers) == 4
        for branch in ("branch1", "branch2.0", "branch3.0", "branch4.1"):
            index = readers[f"network.inception3b.{branch}.conv"].index
            assert index.flatten().tolist() == [*places]


@pytest.mark.parametrize(
    ("model", "pixels"), [("vgg16_bn_fc3", 4), ("vgg16_bn_drop", 1), ("lenet5_caffe", 16)]
)
def test_behind_a_flatten_a_channel_has_a_column_for_each_pixel(model: str, pixels: int) -> None:
    (group,) = (group for group in coupled(model) if names(group.readers) == {"linear1"})
    (slot,) = group.readers
    assert torch.equal(slot.index, torch.arange(group.width * pixels).view(-1, pixels))


def test_a_depthwise_convolution_makes_what_it_reads() -> None:
    groups = by_name("mobilenet_v2_cifar")
    block = "features.2.conv"
    hidden = groups[f"{block}.0.0.weight"]
    assert names(hidden.makers) == {f"{block}.0.0", f"{block}.1.0"}
    assert names(hidden.readers) == {f"{block}.2"}
    assert names(hidden.norms) == {f"{block}.0.1", f"{block}.1.1"}
    # The stem is read by a depthwise convolution first, which has no columns of its own.
    assert names(groups["features.0.0.weight"].readers) == {"features.1.conv.1"}


# What mixes channels


class Mixing(nn.Module):
    """1x6x6 -> 8 channels -> `mix` -> 12 hidden -> 3 logits."""

    def __init__(self, mix: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with seeded(0):
            self.conv = nn.Conv2d(1, 8, 3)
            self.mix = mix
            self.hidden = nn.Linear(8 * 16, 12)
            self.logits = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.hidden(self.mix(self.conv(x)).flatten(1)).relu())


class Gains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


SHAPE = (1, 6, 6)
EXEMPT: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "group norm": nn.GroupNorm(2, 8),
    "group norm without weights": nn.GroupNorm(2, 8, affine=False),
    "grouped convolution": nn.Conv2d(8, 8, 1, groups=2),
    "transposed convolution": nn.ConvTranspose2d(8, 8, 1),
    "slopes of their own": nn.PReLU(8),
    "gains of their own": Gains(),
    "softmax": nn.Softmax(1),
    "unit length": F.normalize,
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "a trace of the mean": lambda x: x + 1e-5 * x.mean(1, keepdim=True),
    "count": lambda x: x / x.shape[1],
    "running sum": lambda x: x.cumsum(1),
    "maximum": lambda x: x.amax(1, keepdim=True).expand_as(x),
    "order": lambda x: x.flip(1),
    "neighbours": lambda x: x + x.roll(1, 1),
    "first": lambda x: x + x[:, :1],
    "pairs": lambda x: torch.cat([x[:, ::2] * x[:, 1::2]] * 2, 1),
    "halves": lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
    "pixels last": lambda x: x.permute(0, 2, 3, 1),
    "nothing that a gradient follows": lambda x: x.detach(),
}
PASSES: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "nothing": nn.Identity(),
    "batch norm": nn.BatchNorm2d(8),
    "batch norm without weights": nn.BatchNorm2d(8, affine=False),
    "instance norm": nn.InstanceNorm2d(8),
    "instance norm with weights": nn.InstanceNorm2d(8, affine=True),
    "depthwise convolution": nn.Conv2d(8, 8, 1, groups=8),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "dropout": nn.Dropout2d(0.5),
}


def works(net: nn.Module, groups: list[ChannelGroup], shape: tuple[int, int, int]) -> None:
    """Without a half of the channels of all groups it is the network in which they are zero."""
    kept = some_kept(groups, [0.5] * len(groups), 0)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = zeroed(net, groups, kept).eval()(images)
        torch.testing.assert_close(smaller(net, groups, kept).eval()(images), expected)


@pytest.mark.parametrize("mix", EXEMPT)
def test_channels_that_are_mixed_stay(mix: str) -> None:
    net = Mixing(EXEMPT[mix])
    groups = couple(net, SHAPE)
    assert [group.name for group in groups] == ["hidden.weight"]
    works(net, groups, SHAPE)


@pytest.mark.parametrize("mix", PASSES)
def test_channels_that_are_passed_on_one_by_one_may_go(mix: str) -> None:
    net = Mixing(PASSES[mix])
    groups = couple(net, SHAPE)
    assert [group.name for group in groups] == ["conv.weight", "hidden.weight"]
    works(net, groups, SHAPE)


def test_what_a_layer_norm_reads_stays() -> None:
    """Features: made, normed and added to; hidden units: neither."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 8, 2, stride=2)
            self.norm = nn.LayerNorm(8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.logits = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.logits((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))

    net = Tokens()
    (group,) = couple(net, SHAPE)
    assert (group.name, group.width) == ("up.weight", 16)
    assert (names(group.makers), names(group.readers)) == ({"up"}, {"down"})
    works(net, [group], SHAPE)


# What cannot be done


def shuffled(x: Tensor) -> Tensor:
    return x.view(len(x), 2, 4, 4, 4).transpose(1, 2).reshape(len(x), 8, 4, 4)


def test_a_network_that_cannot_be_traced_is_refused_with_its_layers() -> None:
    with pytest.raises(
        Incompatible,
        match=r"^channels: the dependency graph of this network, from conv to logits\.weight, "
        r"cannot be traced \(ValueError: .* reshapes channels\); use --granularity weight or 2:4$",
    ) as refusal:
        couple(Mixing(shuffled), SHAPE)
    assert refusal.value.exit_code == 78


def test_images_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(Incompatible, match=r"cannot be traced \(RuntimeError: .*"):
        couple(Mixing(nn.Identity()), (2, 6, 6))


def test_a_network_without_removable_channels_is_refused_with_its_layers() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(
        Incompatible, match=r"no layer of this network, from 1 to 1, has channels that can be rem"
    ):
        couple(net, SHAPE)
    mixing = nn.Sequential(nn.Conv2d(1, 4, 6), nn.Softmax(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(Incompatible, match=r"from 0 to 3, has channels that can be removed"):
        couple(mixing, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"), [("shufflenet_v2_x0_5", 64), ("swin_t", 64), ("maxvit_t", 224)]
)
def test_torchvisions_networks_that_shuffle_or_shift_are_refused(name: str, side: int) -> None:
    net = models.build(
        Architecture(f"torchvision:{name}", 10, (3, side, side), (0.5,) * 3, (0.2,) * 3)
    )
    first, last = next(iter(prunable(net))).removesuffix(".weight"), logits_layer(net)
    with pytest.raises(Incompatible, match=f"from {first} to {last}, cannot be traced"):
        couple(net, (3, side, side))


# What is left behind


@pytest.mark.parametrize("name", ["digits_resnet", "mobilenet_v2_cifar"])
def test_the_network_is_left_as_it_was(name: str) -> None:
    net = copy.deepcopy(living(name)).train()
    first = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    first.eval().requires_grad_(False)
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    learning = [parameter.requires_grad for parameter in net.parameters()]
    kinds = [(type(module), set(vars(module))) for module in net.modules()]
    random = torch.get_rng_state()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        groups = couple(net, arch(name).shape)
    assert len(groups) == len(coupled(name))
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == learning
    assert [(type(module), set(vars(module))) for module in net.modules()] == kinds
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all((p.grad == number).all() for number, p in enumerate(net.parameters()))
    assert torch.equal(torch.get_rng_state(), random)


def test_the_mode_and_what_learns_change_nothing() -> None:
    net = copy.deepcopy(living("digits_resnet"))
    frozen = couple(net.train().requires_grad_(False), arch("digits_resnet").shape)
    for group, same in zip(frozen, coupled("digits_resnet"), strict=True):
        assert (group.name, group.width) == (same.name, same.width)
        assert Counter(s.layer for s in group.slots) == Counter(s.layer for s in same.slots)
