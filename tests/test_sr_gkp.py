"""SR-GKP: roughness, groups and the beam search as described, and counts that are exact."""

import math

import numpy as np
import pytest
import torch
from oracles import sr_gkp as oracle
from toy import generator, make_net, make_task, same, snapshot

from advprune.errors import BadData, Refused
from advprune.grouped_kernels import GroupedKernels, group_count, grouped, snake
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.methods import sr_gkp
from advprune.methods.sr_gkp import SrGkp, best_kernels, groups_of, roughness
from advprune.models import Architecture, build
from advprune.types import Masks

TASK = make_task()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


# Roughness


@pytest.mark.parametrize("side", [(3, 3), (5, 5), (1, 3), (1, 1)])
def test_roughness_is_the_sum_over_cells_and_neighbours(side: tuple[int, int]) -> None:
    weight = draw(4, 3, *side)
    got = roughness(weight)
    assert got.dtype == torch.float64
    for place in np.ndindex(4, 3):
        expected = oracle.roughness(weight[place].numpy())
        assert float(got[place]) == pytest.approx(expected, rel=1e-9)


def test_a_worked_kernel() -> None:
    # Only the middle stands out: it and each of its eight neighbours see a difference of 4.
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = -2.0
    assert float(roughness(kernel)) == 2 * 8 * 4
    # Squares do not know signs: a checkerboard is as smooth as a plain.
    assert float(roughness(torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]]))) == 0.0


# Groups


@pytest.mark.parametrize(("filters", "count"), [(64, 8), (20, 5), (10, 5), (7, 7), (13, 1), (3, 3)])
def test_groups_are_of_one_size(filters: int, count: int) -> None:
    assert group_count(filters) == count


def test_filters_are_dealt_out_there_and_back_again() -> None:
    order = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])
    assert snake(order, 2).tolist() == [[0, 3, 4, 7], [1, 2, 5, 6]]
    assert snake(order, 8).flatten().tolist() == order.tolist()


@pytest.mark.parametrize(("filters", "side"), [(16, 3), (20, 3), (12, 1)])
def test_the_groups_are_those_of_the_description(filters: int, side: int) -> None:
    weight = draw(filters, 5, side, side)
    got = groups_of(weight)
    assert got.tolist() == oracle.groups(weight.numpy(), group_count(filters))
    assert sorted(got.flatten().tolist()) == [*range(filters)]


# The search


@pytest.mark.parametrize("side", [3, 1])
@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5, 7, 8, 9, 11, 12])
def test_the_search_ends_where_the_description_says(keep: int, side: int) -> None:
    for seed in range(3):
        group = 0.3 * draw(2, 12, side, side, seed=seed)
        got = best_kernels(group, keep)
        assert got.nonzero().flatten().tolist() == oracle.kept(group.numpy(), keep), seed


def test_kernels_that_are_all_alike_are_taken_in_their_order() -> None:
    group = torch.ones(2, 9, 3, 3)
    for keep in (1, 4, 8):
        assert best_kernels(group, keep).nonzero().flatten().tolist() == oracle.kept(
            group.numpy(), keep
        )


def test_a_search_in_parts_is_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    group = draw(2, 12, 3, 3)
    whole = best_kernels(group, 7)
    monkeypatch.setattr(sr_gkp, "_HELD", 1)
    assert torch.equal(best_kernels(group, 7), whole)


def test_roughness_decides_between_equal_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    group = 0.3 * draw(2, 12, 3, 3, seed=1)
    changed = [
        not torch.equal(best_kernels(group, keep), _by_roughness(monkeypatch, group, keep))
        for keep in range(4, 12)
    ]
    assert any(changed)


def _by_roughness(patch: pytest.MonkeyPatch, group: torch.Tensor, keep: int) -> torch.Tensor:
    with patch.context() as context:
        context.setattr(sr_gkp, "COST_SHARE", 0.0)
        return best_kernels(group, keep)


# The network


def masks_of(sparsity: float) -> tuple[Masks, GroupedKernels]:
    net, method = make_net(), SrGkp(sparsity=sparsity)
    return method.finish(net, {}, TASK), method.units(net, TASK)


@pytest.mark.parametrize("sparsity", [0.0, 0.4375, 0.5, 0.9])
def test_every_layer_and_group_loses_the_same_share(sparsity: float) -> None:
    masks, units = masks_of(sparsity)
    assert units.sizes == {"network.conv2.weight": 8 * 8, "network.conv3.weight": 5 * 16}
    kept = units.kept(masks)
    assert sum(kept.values()) == kept_count(144, sparsity)
    for name, members in units.groups.items():
        assert abs(kept[name] - (1 - sparsity) * units.sizes[name]) < 1
        of_groups = [
            int(masks[name][filters[0]].flatten(1).any(dim=1).sum()) for filters in members
        ]
        assert max(of_groups) - min(of_groups) <= 1


def test_the_first_convolution_and_linear_layers_stay_whole() -> None:
    masks, _ = masks_of(0.9)
    assert masks["network.conv1.weight"].all()
    assert masks["network.fc.weight"].all()


def test_the_masks_are_those_of_the_description() -> None:
    masks, units = masks_of(0.5)
    weights = prunable_weights(make_net())
    for name, size in units.sizes.items():
        weight = weights[name].numpy()
        members = oracle.groups(weight, group_count(len(weight)))
        expected = np.zeros(weight.shape, dtype=bool)
        for filters in members:
            channels = oracle.kept(weight[filters], size // len(members) // 2)
            expected[np.ix_(filters, channels)] = True
        assert np.array_equal(masks[name].numpy(), expected)


def test_depthwise_convolutions_have_no_grouped_kernels() -> None:
    net = build(Architecture("mobilenet_v2_cifar", 4, (3, 32, 32), (0.5,) * 3, (0.25,) * 3))
    modules = dict(net.named_modules())
    names = [name.removesuffix(".weight") for name in grouped(net)]
    assert len(names) > 10
    assert {modules[name].groups for name in names} == {1}


def test_no_network_is_touched_and_no_image_is_read() -> None:
    net = make_net()
    before = snapshot(net)
    method = SrGkp(sparsity=0.5)
    assert not (method.searches or method.surveys)
    method.finish(net, {}, TASK)
    assert same(snapshot(net), before)


# As units


def test_pooled_values_are_sums_over_grouped_kernels() -> None:
    units = masks_of(0.5)[1]
    values = {name: draw(*w.shape) for name, w in prunable_weights(make_net()).items()}
    pooled = units.pool(values)
    for name, members in units.groups.items():
        for (g, i), got in np.ndenumerate(pooled[name].numpy()):
            assert math.isclose(got, float(values[name][members[g], i].sum()), abs_tol=1e-4)


def test_the_best_kernels_by_a_score_are_whole() -> None:
    units = masks_of(0.5)[1]
    scores = {name: draw(len(g), units.inputs(name)) for name, g in units.groups.items()}
    counts = units.counts("global", scores, 0.7)
    assert units.kept(units.select(scores, counts)) == counts
    with pytest.raises(Refused, match="counts weights, --granularity kernel does not"):
        units.counts("erk", scores, 0.7)


def test_parts_of_a_grouped_kernel_are_a_defect() -> None:
    masks, units = masks_of(0.5)
    masks["network.conv2.weight"][0, 0, 0, 0] ^= True
    with pytest.raises(BadData, match="keeps parts of grouped kernels"):
        units.kept(masks)
