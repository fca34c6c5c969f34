"""BNAP: effective weights and scaling factors, each layer with its own batch norm."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import bnap as oracle
from searching import make
from surveyed_nets import precise
from torch import Tensor, nn
from toy import SIDE, generator, make_net, make_task, same, snapshot

from advprune.coupling import couple
from advprune.folding import Folded
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.methods.bnap import channel_scaling, effective_weights
from advprune.methods.magnitude import Magnitude
from advprune.models import Architecture, build
from advprune.norms import norms_of, scaling
from advprune.types import Masks

TASK = make_task()
SHAPE = (1, SIDE, SIDE)
NORM_OF = {
    "network.conv1": "network.bn1",
    "network.conv2": "network.bn2",
    "network.conv3": None,
    "network.fc": None,
}


def scaled_net() -> nn.Module:
    """Factors of both signs, none of them one."""
    net, draw = make_net(), generator(9)
    for name in ("bn1", "bn2"):
        norm = net.get_submodule(f"network.{name}")
        norm.weight.data.copy_(2.0 * torch.randn(norm.weight.shape, generator=draw))  # pyright: ignore
    return net


def masks_of(net: nn.Module, sparsity: float, **options: Any) -> Masks:
    return make("bnap", sparsity, **options).finish(net, {}, TASK)


# Weights


def test_effective_weights_are_those_of_the_definition() -> None:
    net = scaled_net()
    got, expected = effective_weights(net, SHAPE), oracle.effective(net, NORM_OF)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(got[name].numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_the_lowest_of_all_layers_go(sparsity: float) -> None:
    net = scaled_net()
    scores = oracle.effective(net, NORM_OF)
    total = sum(values.size for values in scores.values())
    expected = oracle.kept(scores, kept_count(total, sparsity))
    masks = masks_of(net, sparsity)
    assert all(np.array_equal(masks[name].numpy(), expected[name]) for name in expected)


def test_they_are_what_folding_leaves_where_the_running_deviation_is_one() -> None:
    net = precise(scaled_net())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.fill_(1.0 - module.eps)
    folded = prunable_weights(Folded(net))
    for name, values in effective_weights(net, SHAPE).items():
        assert torch.allclose(values, folded[name].abs(), rtol=1e-9)


def test_without_scaling_they_are_magnitudes() -> None:
    net = make_net()  # every factor is one
    assert same(masks_of(net, 0.8), Magnitude(sparsity=0.8).finish(net, {}, TASK))
    assert not same(masks_of(scaled_net(), 0.8), masks_of(net, 0.8))


def test_a_filter_that_its_norm_silences_goes_first() -> None:
    net = scaled_net()
    norm = net.get_submodule("network.bn2")
    norm.weight.data[3] = 0.0  # pyright: ignore
    masks = masks_of(net, 0.1)
    assert not masks["network.conv2.weight"][3].any()
    assert masks["network.conv3.weight"][:, 3].any()


# Filters


def test_filters_go_in_the_order_of_their_factor() -> None:
    net = scaled_net()
    factors = torch.cat([
        net.get_submodule("network.bn1").weight.detach().abs(),  # pyright: ignore
        net.get_submodule("network.bn2").weight.detach().abs(),  # pyright: ignore
        torch.ones(20),  # conv3 has no batch norm
    ])  # fmt: skip
    masks = masks_of(net, 0.5, granularity="filter")
    makers = [masks[f"network.conv{i}.weight"].flatten(1).any(dim=1) for i in (1, 2, 3)]
    expected = torch.zeros(44, dtype=torch.bool)
    expected[factors.argsort(descending=True, stable=True)[:22]] = True
    assert torch.equal(torch.cat(makers), expected)


def test_the_weights_of_a_filter_do_not_matter() -> None:
    net = scaled_net()
    before = masks_of(net, 0.5, granularity="filter")
    for weight in prunable_weights(net).values():
        weight.mul_(torch.rand(weight.shape, generator=generator(2)))
    assert same(masks_of(net, 0.5, granularity="filter"), before)


def resnet(name: str) -> nn.Module:
    net, draw = build(Architecture(name, 10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)), generator(4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=draw))
    return net


def test_channels_that_are_added_have_the_mean_factor_of_their_norms() -> None:
    net = resnet("resnet20")
    stream = max(couple(net, (3, 32, 32)), key=lambda group: len(group.makers))
    norms = {slot.layer for slot in stream.norms}
    assert len(norms) == len(stream.makers) > 1
    factors = [net.get_submodule(name).weight.detach().abs() for name in norms]  # pyright: ignore
    assert torch.allclose(channel_scaling(net, stream), torch.stack(factors).mean(dim=0))


# Which norm is whose


def named(net: nn.Module, found: dict[str, nn.Module]) -> dict[str, str]:
    names = {module: name for name, module in net.named_modules()}
    return {layer.removesuffix(".weight"): names[norm] for layer, norm in found.items()}


def test_a_norm_belongs_to_the_layer_whose_output_it_reads() -> None:
    net = make_net()
    found = named(net, norms_of(net, SHAPE))
    assert found == {layer: norm for layer, norm in NORM_OF.items() if norm}


def test_behind_an_addition_it_belongs_to_none() -> None:
    after, before = resnet("resnet20"), resnet("preact_resnet18")
    convolutions = [m for m in after.modules() if isinstance(m, nn.Conv2d)]
    assert len(norms_of(after, (3, 32, 32))) == len(convolutions)
    found = named(before, norms_of(before, (3, 32, 32)))
    # The first convolution of a block; its second one is added to the stream.
    assert any(layer.endswith("conv1") for layer in found)
    assert not any(layer.endswith("conv2") for layer in found)


def test_linear_layers_have_norms_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert named(net, norms_of(net, SHAPE)) == {"1": "2"}


@pytest.mark.parametrize("training", [True, False])
def test_looking_for_norms_leaves_the_network_as_it_was(training: bool) -> None:
    net = scaled_net().train(training)
    before = snapshot(net)
    norms_of(net, SHAPE)
    assert same(snapshot(net), before)
    assert all(module.training == training for module in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    "norm", [None, nn.BatchNorm2d(3, affine=False), nn.InstanceNorm2d(3, affine=True)]
)
def test_what_does_not_scale_counts_as_one(norm: nn.Module | None) -> None:
    factors: Tensor = scaling(norm, 3)
    assert factors.tolist() == [1.0, 1.0, 1.0]
