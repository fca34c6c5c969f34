"""What goes as one is summed, chosen and cut as one, and counted apart from how it was chosen."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import generator, make_net, make_task

from advprune.channel_units import ChannelUnits
from advprune.errors import BadData, Refused
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.methods.magnitude import Magnitude
from advprune.semi_structured import TwoOfFour, two_of_four
from advprune.types import Masks
from advprune.units import Columns, SingleWeights, Units

NET = make_net()
TASK = make_task()
WEIGHTS = prunable_weights(NET)
# Maker and reader of each group of channels of the toy network; two of them have no neighbours.
PAIRS = {
    "network.conv1.weight": "network.conv2.weight",
    "network.conv2.weight": "network.conv3.weight",
    "network.conv3.weight": "network.fc.weight",
}
WIDTHS = {name: len(WEIGHTS[name]) for name in PAIRS}


def channels(judged: str = "filter", least: int = 1, multiple: int = 1) -> ChannelUnits:
    return ChannelUnits(NET, TASK.shape, judged, least, multiple)  # pyright: ignore


def drawn(seed: int = 0) -> dict[str, Tensor]:
    draw = generator(seed)
    return {name: torch.randn(w.shape, generator=draw) for name, w in WEIGHTS.items()}


def test_single_weights_are_their_own_units() -> None:
    units = SingleWeights(NET)
    values = drawn()
    assert all(units.pool(values)[name] is values[name] for name in values)
    assert units.sizes == {name: weight.numel() for name, weight in WEIGHTS.items()}
    assert all(torch.equal(n, WEIGHTS[k].abs()) for k, n in units.norms(WEIGHTS).items())


def test_columns_are_summed_over_the_filters() -> None:
    pooled = Columns(NET).pool(drawn())
    for name, value in drawn().items():
        assert np.allclose(pooled[name][0].numpy(), value.numpy().sum(axis=0), atol=1e-5)


@pytest.mark.parametrize("judged", ["filter", "channel"])
def test_a_channel_is_summed_over_what_makes_or_what_reads_it(judged: str) -> None:
    pooled = channels(judged).pool(drawn())
    assert pooled.keys() == PAIRS.keys()
    for maker, reader in PAIRS.items():
        for channel in range(WIDTHS[maker]):
            own = drawn()[maker][channel] if judged == "filter" else drawn()[reader][:, channel]
            assert float(pooled[maker][channel]) == pytest.approx(float(own.sum()), abs=1e-5)
    norms = channels(judged).norms(WEIGHTS)
    for maker, reader in PAIRS.items():
        own = WEIGHTS[maker][0] if judged == "filter" else WEIGHTS[reader][:, 0]
        assert float(norms[maker][0]) == pytest.approx(float(own.norm()), rel=1e-5)


def test_a_stream_that_two_layers_make_is_worth_their_mean() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 1, bias=False)
            self.body = nn.Conv2d(4, 4, 1, bias=False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head((x + self.body(x)).mean(dim=(2, 3)))

    net = Residual()
    units = ChannelUnits(net, (1, 3, 3), "filter", 1, 1)
    assert units.sizes == {"stem.weight": 4}
    weights = prunable_weights(net)
    sums = [w.flatten(1).square().sum(dim=1) for w in (net.stem.weight, net.body.weight)]
    expected = ((sums[0] + sums[1]) / 2).sqrt()
    assert torch.allclose(units.norms(weights)["stem.weight"], expected)
    masks = units.masks({"stem.weight": torch.tensor([True, False, True, False])})
    assert masks["stem.weight"].flatten().tolist() == [True, False, True, False]
    keep = torch.tensor([[1, 0, 1, 0]]).bool()
    assert torch.equal(masks["body.weight"][:, :, 0, 0], keep & keep.T)
    assert torch.equal(masks["head.weight"], keep.expand(2, 4))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_the_best_channels_stay_in_both_layers(seed: int, sparsity: float) -> None:
    units = channels()
    scores = units.pool(drawn(seed))
    for rule in ("uniform", "global"):
        counts = units.counts(rule, scores, sparsity)
        masks = units.select(scores, counts)
        units.check(masks, sparsity)
        assert sum(counts.values()) == 44 - math.ceil(sparsity * 44 - 1e-9)
        for maker, reader in PAIRS.items():
            best = set(scores[maker].topk(counts[maker]).indices.tolist())
            for channel in range(WIDTHS[maker]):
                assert bool(masks[maker][channel].any()) == (channel in best)
                assert bool(masks[reader][:, channel].any()) == (channel in best)


def test_uniform_and_global_share_channels_in_their_own_way() -> None:
    units, scores = channels(), channels().pool(drawn())
    scores["network.conv3.weight"] += 100.0
    uniform, overall = (units.counts(rule, scores, 0.5) for rule in ("uniform", "global"))
    assert uniform == {name: width // 2 for name, width in WIDTHS.items()}
    assert overall["network.conv3.weight"] == 20


@pytest.mark.parametrize("units", [channels(), Columns(NET)], ids=["channels", "columns"])
@pytest.mark.parametrize("rule", ["erk", "lamp"])
def test_rules_that_count_weights_are_refused(units: Units, rule: str) -> None:
    with pytest.raises(Refused, match=f"--allocation {rule} counts weights, .* use --allocation"):
        units.counts(rule, units.pool(drawn()), 0.5)


def test_widths_are_rounded_and_never_above_the_budget() -> None:
    units = channels(least=4, multiple=4)
    counts = units.counts("uniform", units.pool(drawn()), 0.55)
    # 0.45 x 44 = 19.8: wanted are 3.6, 7.2 and 9, and of the roundings 4 + 8 + 8 is one too many.
    assert sum(counts.values()) == 16
    assert all(count % 4 == 0 for count in counts.values())
    units.check(units.select(units.pool(drawn()), counts), 0.55)
    message = r"network\.conv1\.weight would keep 0\.8 of 8 channels, 4 is its least width"
    with pytest.raises(BadData, match=message):
        units.counts("uniform", units.pool(drawn()), 0.9)


# 2:4


@given(st.integers(0, 10**6))
def test_the_two_largest_of_every_four_stay(seed: int) -> None:
    scores = torch.randn(6, 8, 3, 3, generator=generator(seed))
    mask = two_of_four(scores)
    for output in range(6):
        for four in range(2):
            values = scores[output, 4 * four : 4 * four + 4]
            for pixel in np.ndindex(3, 3):
                column = values[:, pixel[0], pixel[1]]
                kept = mask[output, 4 * four : 4 * four + 4, pixel[0], pixel[1]]
                assert set(column.topk(2).indices.tolist()) == set(kept.nonzero()[:, 0].tolist())


def test_of_equal_scores_the_first_two_stay() -> None:
    mask = two_of_four(torch.ones(2, 8))
    assert mask.tolist() == [[True, True, False, False] * 2] * 2


def test_two_in_four_leaves_layers_whole_that_have_no_fours() -> None:
    units = TwoOfFour(NET)
    assert "network.conv1.weight" not in units.sizes  # one colour
    scores = units.norms(WEIGHTS)
    masks = units.select(scores, units.counts("global", scores, 0.5))
    assert masks["network.conv1.weight"].all()
    units.check(masks, 0.5)
    masks["network.conv2.weight"][0, :4, 0, 0] = torch.tensor([True, True, True, False])
    with pytest.raises(BadData, match=r"conv2\.weight does not keep two of every four"):
        units.check(masks, 0.5)


def test_a_network_without_fours_is_refused() -> None:
    with pytest.raises(Refused, match=r"no layer from 0\.weight on reads a multiple of four"):
        TwoOfFour(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(6, 2)))


def test_depthwise_and_grouped_convolutions_have_no_fours() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 2))
    assert list(TwoOfFour(net).sizes) == ["2.weight"]


def test_two_in_four_has_one_sparsity() -> None:
    with pytest.raises(ValueError, match=r"removes two weights of four, sparsity is 0\.9; give"):
        Magnitude(granularity="2:4", sparsity=0.9)
    assert Magnitude(granularity="2:4", sparsity=0.5).granularity == "2:4"


# What the stage holds against the masks


def half(units: Units) -> Masks:
    scores = units.norms(WEIGHTS)
    return units.select(scores, units.counts("uniform", scores, 0.5))


@pytest.mark.parametrize("units", [SingleWeights(NET), Columns(NET), channels(), TwoOfFour(NET)])
def test_masks_off_target_are_refused(units: Units) -> None:
    units.check(half(units), 0.5)
    with pytest.raises(BadData, match=r"sparsity 0\.6 asks for"):
        units.check(half(units), 0.6)
    with pytest.raises(BadData, match=r"sparsity 0\.4 asks for"):
        units.check(half(units), 0.4)


def test_an_empty_layer_is_refused_by_name() -> None:
    units = SingleWeights(NET)
    masks = half(units)
    masks["network.fc.weight"].zero_()
    asked = 1 - sum(int(m.sum()) for m in masks.values()) / sum(units.sizes.values())
    kept = kept_count(sum(units.sizes.values()), asked)
    assert kept == sum(int(m.sum()) for m in masks.values())
    with pytest.raises(BadData, match=r"keep 0 of 60 weights in network\.fc\.weight; lower"):
        units.check(masks, asked)


@pytest.mark.parametrize("units", [Columns(NET), channels()], ids=["columns", "channels"])
def test_parts_of_what_goes_as_one_are_refused(units: Units) -> None:
    masks = half(units)
    first = masks["network.conv2.weight"].nonzero()[0]
    masks["network.conv2.weight"][tuple(first)] = False
    with pytest.raises(BadData, match=r"network\.conv2\.weight keeps parts of"):
        units.check(masks, 0.5)


def test_a_width_that_no_engine_was_promised_is_refused() -> None:
    masks = half(channels())
    units = channels()
    units.allowed["network.conv2.weight"] = [5, 10, 15, 16]
    with pytest.raises(BadData, match=r"conv2\.weight keeps 8 of 16 channels, none of .*\[5, 10,"):
        units.check(masks, 0.5)
