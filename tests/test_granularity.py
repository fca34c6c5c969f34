"""Groups are what shares an index: filters, input channels, columns; each sum has their shape."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from toy import generator, make_net

from advprune.granularity import Granularity, exempt, group_norm, group_sum
from advprune.masking import prunable_weights

GRANULARITIES = get_args(Granularity)
SHAPES: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {
    "weight": {(5, 4, 3, 2): (5, 4, 3, 2), (5, 4): (5, 4)},
    "filter": {(5, 4, 3, 2): (5, 1, 1, 1), (5, 4): (5, 1)},
    "channel": {(5, 4, 3, 2): (1, 4, 1, 1), (5, 4): (1, 4)},
    "column": {(5, 4, 3, 2): (1, 4, 3, 2), (5, 4): (1, 4)},
}
CASES = [(g, shape, grouped) for g, table in SHAPES.items() for shape, grouped in table.items()]
every_case = pytest.mark.parametrize(("granularity", "shape", "grouped"), CASES)


def drawn(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator(0), dtype=torch.float64)


def slow_sum(values: Tensor, granularity: str) -> dict[tuple[int, ...], float]:
    """One weight after the other into the group that its indices name."""
    sums: dict[tuple[int, ...], float] = {}
    for index in torch.cartesian_prod(*(torch.arange(size) for size in values.shape)).tolist():
        output, channel, *kernel = index
        group = {
            "weight": (output, channel, *kernel),
            "filter": (output, 0, *[0] * len(kernel)),
            "channel": (0, channel, *[0] * len(kernel)),
            "column": (0, channel, *kernel),
        }[granularity]
        sums[group] = sums.get(group, 0.0) + float(values[tuple(index)])
    return sums


def test_every_granularity_is_considered() -> None:
    assert set(SHAPES) == set(GRANULARITIES)


@every_case
def test_sums_have_one_entry_for_each_group_and_broadcast(
    granularity: Granularity, shape: tuple[int, ...], grouped: tuple[int, ...]
) -> None:
    values = drawn(shape)
    sums = group_sum(values, granularity)
    assert sums.shape == grouped
    assert (sums * values).shape == shape
    expected = slow_sum(values, granularity)
    assert len(expected) == sums.numel()
    for index, value in expected.items():
        assert float(sums[index]) == pytest.approx(value, rel=1e-12)


@every_case
def test_norms_are_roots_of_summed_squares(
    granularity: Granularity, shape: tuple[int, ...], grouped: tuple[int, ...]
) -> None:
    weight = drawn(shape)
    before = weight.clone()
    norms = group_norm(weight, granularity)
    assert norms.shape == grouped
    for index, value in slow_sum(weight**2, granularity).items():
        assert float(norms[index]) == pytest.approx(value**0.5, rel=1e-12)
    assert torch.equal(weight, before)


def test_the_norm_of_a_single_weight_is_its_magnitude_to_the_last_bit() -> None:
    # The root of a square underflows to zero: magnitude pruning must still see an order.
    tiny = torch.tensor([[1e-30, -2e-30], [-0.1, 0.3]])
    assert torch.equal(group_norm(tiny, "weight"), tiny.abs())
    assert len(group_norm(tiny, "weight").unique()) == 4


def test_a_removed_group_silences_what_it_is_named_after() -> None:
    conv = nn.Conv2d(4, 5, 3, bias=False)
    x = torch.randn(2, 4, 6, 6, generator=generator(1))
    mask = torch.ones(5, 1, 1, 1)
    mask[2] = 0
    removed = torch.func.functional_call(conv, {"weight": conv.weight * mask}, (x,))
    assert not removed[:, 2].any()
    assert torch.equal(removed[:, [0, 1, 3, 4]], conv(x)[:, [0, 1, 3, 4]])
    mask = torch.ones(1, 4, 1, 1)
    mask[:, 3] = 0
    deaf = torch.func.functional_call(conv, {"weight": conv.weight * mask}, (x,))
    x[:, 3] = 7.0
    assert torch.equal(torch.func.functional_call(conv, {"weight": conv.weight * mask}, (x,)), deaf)


def test_no_class_and_no_colour_is_removed() -> None:
    net = make_net()
    first, *_, last = prunable_weights(net)
    assert exempt(net, "filter") == {last} == {"network.fc.weight"}
    assert exempt(net, "channel") == {first} == {"network.conv1.weight"}
    assert exempt(net, "weight") == exempt(net, "column") == set()
