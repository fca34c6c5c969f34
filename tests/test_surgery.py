"""Promise: without channels that nobody reads a network is the same function, only smaller."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from living_nets import (
    TORCHVISION,
    Kept,
    arch,
    coupled,
    living,
    noise,
    patterns,
    smaller,
    some_kept,
    zeroed,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advprune import models, stats
from advprune.channels import ChannelGroup
from advprune.errors import BadData, Incompatible
from advprune.models import checkpoint
from advprune.surgery import Widths, cut, depthwise, resize, sizeable, widths

GAP = 1e-5  # of the largest logit: fewer channels are added in another order
SMALL = ("digits_resnet", "lenet5_caffe", "resnet20")
every_model = pytest.mark.parametrize("name", models.names())


@torch.no_grad()
def check(name: str, kept: Kept) -> None:
    net, groups = living(name), coupled(name)
    images = noise(name, 2)
    small = smaller(net, groups, kept)
    expected, got = zeroed(net, groups, kept)(images), small(images)
    assert (got - expected).abs().max() <= GAP * expected.abs().max()
    assert torch.equal(got.argmax(dim=1), expected.argmax(dim=1))
    assert widths(small) == narrowed(net, groups, kept)


def narrowed(net: nn.Module, groups: list[ChannelGroup], kept: Kept) -> Widths:
    """The widths that are left, by counting what goes."""
    left = {name: list(pair) for name, pair in widths(net).items()}
    for group in groups:
        gone = group.width - int(kept[group.name].sum())
        for slot in group.slots:
            left[slot.layer][slot.axis] -= gone * slot.index.shape[1]
    for name, pair in left.items():
        layer = net.get_submodule(name)
        if depthwise(layer) or not isinstance(layer, nn.Conv2d | nn.Linear):
            pair[1] = pair[0]
    return {name: (outputs, inputs) for name, (outputs, inputs) in left.items()}


# The same function


@every_model
def test_cutting_out_is_zeroing(name: str) -> None:
    @settings(
        max_examples=10 if name in SMALL else 2,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(patterns(coupled(name)))
    def cut_as_drawn(kept: Kept) -> None:
        check(name, kept)

    cut_as_drawn()


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_cutting_out_of_torchvisions_networks_is_zeroing(name: str) -> None:
    groups = coupled(name)
    for seed, share in enumerate((0.6, 0.1)):
        check(name, some_kept(groups, [share] * len(groups), seed))
    macs_are_half_the_flops(name)


def macs_are_half_the_flops(name: str) -> None:
    net, groups = living(name), coupled(name)
    small = smaller(net, groups, some_kept(groups, [0.4] * len(groups), 0))
    found = []
    for each in (net, small):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            each(noise(name, 1))
        counts: dict[Any, int] = counter.get_flop_counts()["Global"]
        # Products of queries, keys and values belong to no layer.
        flops = sum(n for op, n in counts.items() if "attention" not in str(op))
        found.append(stats.macs(each, arch(name).shape))
        assert 2 * found[-1] == flops
    assert found[1] < found[0]


@every_model
def test_macs_are_half_the_flops_that_torch_counts_dense_and_cut(name: str) -> None:
    macs_are_half_the_flops(name)


def test_a_cut_network_trains() -> None:
    name = "mobilenet_v2_cifar"
    net, groups = living(name), coupled(name)
    small = smaller(net, groups, some_kept(groups, [0.3] * len(groups), 0)).train()
    small(noise(name, 4)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_only_the_layers_of_the_groups_change() -> None:
    name = "digits_resnet"
    net, groups = living(name), coupled(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kept = some_kept(groups, [1.0] * len(groups), 0)
    kept["network.blocks.1.conv1.weight"][::2] = False
    small = smaller(net, groups, kept)
    changed = {key for key, value in small.state_dict().items() if value.shape != before[key].shape}
    block = "network.blocks.1"
    norm = {f"{block}.bn1.{key}" for key in ("weight", "bias", "running_mean", "running_var")}
    assert changed == {f"{block}.conv1.weight", f"{block}.conv2.weight"} | norm
    for key, value in small.state_dict().items():
        whole = before[key]
        if key == f"{block}.conv2.weight":
            whole = whole[:, 1::2]
        elif key in changed:
            whole = whole[1::2]
        assert torch.equal(value, whole), key
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# One layer


def layers() -> dict[str, Callable[[], nn.Module]]:
    return {
        "convolution": lambda: nn.Conv2d(6, 8, 3, padding=1),
        "without bias": lambda: nn.Conv2d(6, 8, 1, bias=False),
        "linear": lambda: nn.Linear(6, 8),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", layers())
def test_rows_and_columns_that_stay_are_the_same(kind: str) -> None:
    layer = layers()[kind]()
    names, weight = list(layer.state_dict()), layer.get_parameter("weight").clone()
    outputs, inputs = torch.tensor([1, 2, 7]), torch.tensor([0, 5])
    x = torch.rand(2, 5, 5, 6) if kind == "linear" else torch.rand(2, 6, 5, 5)
    columns = 3 if kind == "linear" else 1
    masked = torch.zeros_like(x)
    masked.index_copy_(columns, inputs, x.index_select(columns, inputs))
    expected = layer(masked).index_select(columns, outputs)
    layer.get_parameter("weight").requires_grad_(False)
    cut(layer, outputs, inputs)
    assert widths(layer) == {"": (3, 2)}
    assert list(layer.state_dict()) == names
    assert torch.equal(layer.get_parameter("weight"), weight[outputs][:, inputs])
    assert not layer.get_parameter("weight").requires_grad
    if "bias" in names:
        assert layer.get_parameter("bias").requires_grad
    got = layer(x.index_select(columns, inputs))
    assert torch.allclose(got, expected, atol=1e-6)


@torch.no_grad()
def test_a_depthwise_convolution_goes_by_its_outputs_alone() -> None:
    layer = nn.Conv2d(6, 6, 3, groups=6)
    x, stay = torch.rand(2, 6, 5, 5), torch.tensor([0, 2, 3])
    expected = layer(x)[:, stay]
    assert depthwise(layer) and sizeable(layer)
    cut(layer, stay, torch.tensor([5]))
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 3, 3)
    assert torch.allclose(layer(x[:, stay]), expected, atol=1e-6)
    cut(layer, torch.tensor([1]), torch.tensor([1]))
    assert layer(x[:, [2]]).shape == (2, 1, 3, 3)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_a_batch_norm_keeps_the_statistics_of_what_stays(options: dict[str, bool]) -> None:
    norm = nn.BatchNorm2d(6, **options)
    norm(torch.rand(4, 6, 3, 3))
    keys = list(norm.state_dict())
    x, stay = torch.rand(2, 6, 3, 3), torch.tensor([1, 4])
    expected = norm.eval()(x)[:, stay]
    cut(norm, stay, stay)
    assert norm.num_features == 2
    assert list(norm.state_dict()) == keys
    assert torch.allclose(norm(x[:, stay]), expected, atol=1e-6)


def test_what_can_be_sized() -> None:
    can = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(2, 2), nn.BatchNorm1d(2)]
    cannot = [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.ConvTranspose2d(4, 4, 1),
        nn.ReLU(),
    ]
    assert all(map(sizeable, can)) and not any(map(sizeable, cannot))
    assert not any(map(depthwise, [can[0], can[2], *cannot]))


# Written and read again


@pytest.mark.parametrize(
    "name", ["digits_resnet", "mobilenet_v2_cifar", "googlenet_cifar", "vgg16_bn_fc3"]
)
def test_a_smaller_network_survives_its_checkpoint(name: str, tmp_path: Path) -> None:
    net, groups = living(name), coupled(name)
    small = smaller(net, groups, some_kept(groups, [0.3] * len(groups), 4))
    changed = {k: size for k, size in widths(small).items() if size != widths(net)[k]}
    assert changed
    narrow = replace(arch(name), widths=changed)
    checkpoint.save(small, narrow, tmp_path)
    assert checkpoint.load_architecture(tmp_path) == narrow
    again = checkpoint.load(tmp_path).eval()
    assert widths(again) == widths(small)
    state = again.state_dict()
    assert state.keys() == small.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())
    images = noise(name, 2)
    with torch.no_grad():
        assert torch.equal(again(images), small(images))


def stored(folder: Path, given: object) -> Path:
    """A folder whose architecture.json has these widths."""
    tiny = arch("digits_resnet")
    checkpoint.save(models.build(tiny), tiny, folder)
    path = folder / checkpoint.ARCHITECTURE
    path.write_text(json.dumps({**json.loads(path.read_text()), "widths": given}))
    return folder


CONV, NORM = "network.blocks.0.conv1", "network.blocks.0.bn1"


@pytest.mark.parametrize(
    "given",
    [
        [],
        [[CONV, [16, 32]]],
        "16",
        {CONV: 16},
        {CONV: [16]},
        {CONV: [16, 16, 16]},
        {CONV: [16.0, 32]},
        {CONV: ["16", 32]},
        {CONV: [True, 32]},
        {CONV: [None, 32]},
        {CONV: [0, 32]},
        {CONV: [16, -1]},
        {CONV: [16, 10**12]},
        {CONV: {"0": 16}},
    ],
)
def test_widths_that_are_no_sizes_are_refused(given: object, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"architecture\.json: architecture: widths must be pairs"):
        checkpoint.load(stored(tmp_path, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network.blocks.7.conv1": [16, 32]}, r"widths of 'network\.blocks\.7\.conv1', which is"),
        ({"network.blocks.0.relu1": [16, 16]}, r"'network\.blocks\.0\.relu1', which is no layer"),
        ({"network": [1, 1]}, "'network', which is no layer"),
        ({CONV: [33, 32]}, r"'network\.blocks\.0\.conv1' must lie between 1 and \(32, 32\), got"),
        ({CONV: [16, 33]}, r"must lie between 1 and \(32, 32\), got \(16, 33\)"),
        ({NORM: [16, 32]}, r"'network\.blocks\.0\.bn1' must be equal, got \(16, 32\)"),
        ({NORM: [32, 16]}, r"'network\.blocks\.0\.bn1' must be equal, got \(32, 16\)"),
    ],
)
def test_widths_that_no_layer_can_have_are_refused(
    given: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=message):
        checkpoint.load(stored(tmp_path, given))


def test_widths_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"'digits_resnet' cannot take images"):
        checkpoint.load(stored(tmp_path, {CONV: [16, 32]}))


def test_weights_of_other_widths_are_refused(tmp_path: Path) -> None:
    pair = {CONV: [16, 32], NORM: [16, 16], "network.blocks.0.conv2": [32, 16]}
    with pytest.raises(Incompatible, match="weights of another network"):
        checkpoint.load(stored(tmp_path, pair))


def test_a_depthwise_convolution_has_one_width_and_a_grouped_one_none() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2))

    net = wide()
    resize(net, {"0": (3, 3)})
    assert widths(net) == {"0": (3, 3), "1": (8, 8)}
    with pytest.raises(BadData, match=r"'0' must be equal, got \(3, 4\)"):
        resize(wide(), {"0": (3, 4)})
    with pytest.raises(BadData, match="'1', which is no layer that has them"):
        resize(wide(), {"1": (4, 4)})


def test_resizing_keeps_the_first_channels() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    weight: Tensor = net.get_parameter("0.weight").detach().clone()
    resize(net, {"0": (3, 2)})
    assert torch.equal(net.get_parameter("0.weight"), weight[:3, :2])
    assert net.get_parameter("0.bias").shape == (3,)
