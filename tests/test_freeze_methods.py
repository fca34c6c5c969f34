"""Frozen layers end as they began, to the last bit, whatever the method; the rest is pruned."""

from collections.abc import Mapping

import pytest
import torch
from searching import IMAGES, SCHEDULE, VARIANTS, search
from torch import Tensor, nn
from toy import Memory, make_net, make_task

from advprune.coupling import examine
from advprune.errors import BadData, Incompatible
from advprune.masking import bake, hold
from advprune.masks import kept_count, sparsity_of
from advprune.method import PruningMethod
from advprune.models import prunable
from advprune.models.freezing import freeze
from advprune.train import fit

# Choices of layers of the toy network, each of which leaves channels that can go.
FROZEN = {
    "first": ("network.conv1", "network.bn1"),
    "second": ("network.conv2", "network.bn2"),
    "norm": ("network.bn2",),
    "head": ("network.fc",),
}


def frozen_net(names: tuple[str, ...], seed: int = 0) -> nn.Module:
    """With statistics and factors of batch norms that no fresh network has."""
    net = make_net(seed)
    for name in ("bn1", "bn2"):
        norm = net.get_submodule(f"network.{name}")
        for value in norm.state_dict().values():
            if value.is_floating_point():
                value.add_(0.25)
    freeze(net, names)
    return net


def of(state: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Their weights, factors and statistics."""
    chosen = {k: v.clone() for k, v in state.items() if k.rpartition(".")[0] in names}
    assert len(chosen) >= len(names)
    return chosen


def bits(values: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in values.items()}


@pytest.mark.parametrize("names", [FROZEN["first"], FROZEN["head"]], ids=["first", "head"])
@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_after_search_and_fine_tuning_frozen_layers_are_as_they_were(
    method: PruningMethod, names: tuple[str, ...]
) -> None:
    net = frozen_net(names)
    before, everything = of(net.state_dict(), names), dict(net.state_dict())
    everything = {name: value.clone() for name, value in everything.items()}
    masks = search(method, net)
    assert masks.keys() == prunable(net).keys()
    assert masks.keys().isdisjoint(f"{name}.weight" for name in names)
    assert sparsity_of(masks) > 0.25
    pruned = bake(net, frozen_net(names, seed=5))
    if method.lands:
        method.units(pruned, make_task()).check(masks, method.sparsity)
    hold(pruned, masks)
    fit(pruned, IMAGES, make_task(steps=1), SCHEDULE, Memory())
    tuned = bake(pruned, frozen_net(names, seed=6)).state_dict()
    assert bits(of(tuned, names)) == bits(before)
    # And the training did move what it may.
    moved = [name for name in masks if not torch.equal(tuned[name], everything[name] * masks[name])]
    assert moved == list(masks)


@pytest.mark.parametrize("names", FROZEN.values(), ids=FROZEN)
def test_no_channel_goes_that_a_frozen_layer_makes_or_reads(names: tuple[str, ...]) -> None:
    free, bound = (examine(net, (1, 6, 6)) for net in (make_net(), frozen_net(names)))
    touching = [group for group in free.groups if {slot.layer for slot in group.slots} & {*names}]
    assert touching
    left = {group.name for group in free.groups} - {group.name for group in touching}
    assert {group.name for group in bound.groups} == left
    for group in touching:
        assert bound.kept[group.makers[0].layer] == "a frozen layer makes or reads them"


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_a_network_of_which_only_the_head_is_left_is_pruned_there_or_refused(
    method: PruningMethod,
) -> None:
    net = frozen_net(("network.conv1", "network.conv2", "network.conv3"))
    dense = type(method).__name__ in ("Gap", "Gradient") or getattr(method, "head", "") == "dense"
    granularity = getattr(method, "granularity", "weight")
    if method.shrinks:
        with pytest.raises(Incompatible, match="or freeze fewer layers"):
            search(method, net)
    elif granularity == "kernel" or (dense and granularity == "weight"):
        with pytest.raises(BadData, match="keeps every layer of this network"):
            search(method, net)
    else:
        (mask,) = search(method, net).values()
        assert int(mask.sum()) == kept_count(mask.numel(), method.sparsity)


def test_without_the_mark_the_same_search_moves_them() -> None:
    """The check above can fail."""
    names = FROZEN["first"]
    net = frozen_net(())
    before = of(net.state_dict(), names)
    search(VARIANTS["radmm"], net)
    after = of(net.state_dict(), names)
    assert not any(torch.equal(before[k], after[k]) for k in before if "tracked" not in k)


def test_a_name_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(BadData, match=r"frozen is 'network\.conv9'"):
        frozen_net(("network.conv9",))
