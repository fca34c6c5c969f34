"""A pruned network that answers all images alike is refused; one with any way through is not."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from advprune.errors import BadData
from advprune.masking import hold, prunable_weights
from advprune.models import Architecture, build
from advprune.signal import demand_signal
from advprune.types import Masks

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def net(name: str) -> nn.Module:
    return build(Architecture(name, 10, (1, 8, 8), (0.5,), (0.3,)), seed=0)


def full(network: nn.Module) -> Masks:
    return {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable_weights(network).items()
    }


def chain() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def emptied(masks: Masks) -> None:
    masks["2.weight"][:] = False


def crossed(masks: Masks) -> None:
    """Every layer keeps weights; the second reads a channel that the first does not make."""
    masks["0.weight"][:] = False
    masks["0.weight"][0] = True
    masks["2.weight"][:, 0] = False


@pytest.mark.parametrize(
    ("cut", "kept"),
    [(emptied, "2.weight, which keeps 0 of 144"), (crossed, "2.weight, which keeps 108 of 144")],
)
def test_a_chain_that_is_cut_is_refused_naming_where(
    cut: Callable[[Masks], None], kept: str
) -> None:
    network = chain()
    masks = full(network)
    cut(masks)
    hold(network, masks)
    with pytest.raises(BadData, match=f"gets through {kept} weights") as refusal:
        demand_signal(network, IMAGES, masks)
    assert refusal.value.exit_code == 65
    assert "\n" not in str(refusal.value)


def test_an_empty_layer_beside_a_skip_is_no_cut() -> None:
    network = net("digits_resnet")
    masks = full(network)
    branch = [name for name in masks if "conv2" in name]
    for name in branch:
        masks[name][:] = False
    hold(network, masks)
    demand_signal(network, IMAGES, masks)
    # With the stem gone there is no way around either.
    (stem, *_) = masks
    masks[stem][:] = False
    network = net("digits_resnet")
    hold(network, masks)
    with pytest.raises(BadData, match=f"gets through {stem}, which keeps 0 of"):
        demand_signal(network, IMAGES, masks)


def test_what_training_can_mend_is_not_refused_and_the_network_stays() -> None:
    network = net("digits_resnet")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # As the dense network left it: far above what the pruned one brings, so ReLU is shut.
            module.running_mean.fill_(1e3)  # pyright: ignore[reportOptionalMemberAccess]
    masks = full(network)
    hold(network, masks)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    demand_signal(network, IMAGES, masks)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        answers = network.eval()(IMAGES)
    assert (answers - answers[:1]).abs().max() < 1e-6  # in eval mode nothing would get through
