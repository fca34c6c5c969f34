"""Allocation rules spend the budget to the last weight, as their papers say, layer by name."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from advprune.allocate import (
    ALLOCATIONS,
    allocate,
    distribute,
    erk,
    global_magnitude,
    lamp,
    lamp_scores,
    uniform,
)
from advprune.errors import BadData, Refused
from advprune.models import Architecture, build, prunable

Shape = tuple[int, ...]
every_rule = pytest.mark.parametrize("rule", sorted(ALLOCATIONS))
sparsities = st.decimals(0, "0.999", places=3)
conv = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3)).map(
    lambda sizes: (sizes[0], sizes[1], sizes[2], sizes[2])
)
linear = st.tuples(st.integers(1, 30), st.integers(1, 30))
shapes = st.lists(conv | linear, min_size=1, max_size=6)

# The VGG-16 of the papers: three linear layers after a pool that leaves 2 x 2 pixels.
VGG16: dict[str, Shape] = {
    "conv1": (64, 3, 3, 3),
    "conv2": (64, 64, 3, 3),
    "conv3": (128, 64, 3, 3),
    "conv4": (128, 128, 3, 3),
    "conv5": (256, 128, 3, 3),
    "conv6": (256, 256, 3, 3),
    "conv7": (256, 256, 3, 3),
    "conv8": (512, 256, 3, 3),
    **{f"conv{i}": (512, 512, 3, 3) for i in range(9, 14)},
    "linear1": (256, 2048),
    "linear2": (256, 256),
    "linear3": (10, 256),
}
GOLDEN = dict(
    zip(
        VGG16,
        [0.5868, 0.0505, 0.0373, 0.0247, 0.0184, 0.0122, 0.0122, 0.0091]
        + 5 * [0.0061]
        + [0.0610, 0.1085, 1.0],
        strict=True,
    )
)


def normal(shapes: dict[str, Shape], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def named(shapes: list[Shape], seed: int = 0) -> dict[str, Tensor]:
    return normal({f"layer{i}.weight": shape for i, shape in enumerate(shapes)}, seed)


def empty(shapes: dict[str, Shape]) -> dict[str, Tensor]:
    """Shapes without values, for the rules that look at shapes alone."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def budget(weights: dict[str, Tensor], sparsity: Decimal) -> int:
    size = sum(weight.numel() for weight in weights.values())
    return size - math.floor(Fraction(sparsity) * size)


@settings(deadline=None)
@every_rule
@given(shapes, sparsities, st.integers(0, 1000))
def test_the_budget_is_spent_exactly_and_no_layer_is_empty_or_overfull(
    rule: str, shapes: list[Shape], sparsity: Decimal, seed: int
) -> None:
    weights = named(shapes, seed)
    total = budget(weights, sparsity)
    try:
        kept = allocate(rule, weights, float(sparsity))
    except BadData as refusal:
        assert total < len(weights)
        assert "lower the sparsity" in str(refusal)
        return
    assert kept.keys() == weights.keys()
    assert sum(kept.values()) == total
    for name, count in kept.items():
        assert 1 <= count <= weights[name].numel()


@every_rule
@pytest.mark.parametrize("sparsity", [0.999, 1 - 1e-12, 1 - 2**-53])
def test_fewer_weights_than_layers_are_refused(rule: str, sparsity: float) -> None:
    with pytest.raises(BadData, match=r"^allocation: . weights cannot serve 3 layers; lower"):
        allocate(rule, named([(3, 3), (4, 4), (5, 5)]), sparsity)


@settings(deadline=None)
@given(shapes, sparsities)
def test_uniform_is_within_one_weight_of_the_density(
    shapes: list[Shape], sparsity: Decimal
) -> None:
    weights = named(shapes)
    total = budget(weights, sparsity)
    density = Fraction(total, sum(weight.numel() for weight in weights.values()))
    # Below one weight per layer, what small layers get beyond their share is taken from others.
    assume(all(density * weight.numel() >= 1 for weight in weights.values()))
    for name, count in uniform(weights, total).items():
        assert abs(count - density * weights[name].numel()) <= 1


@settings(deadline=None)
@given(st.lists(st.fractions(1, 60, max_denominator=97), min_size=1, max_size=8))
def test_real_counts_are_rounded_by_largest_remainder(wanted: list[Fraction]) -> None:
    remainders = [value - math.floor(value) for value in wanted]
    assume(len({float(r) for r in remainders}) == len(wanted))  # no ties
    total = math.floor(sum(wanted))
    owed = total - sum(math.floor(value) for value in wanted)
    largest = sorted(range(len(wanted)), key=lambda i: -remainders[i])[:owed]
    expected = {i: math.floor(value) + (i in largest) for i, value in enumerate(wanted)}
    by_name = {f"{i}": float(value) for i, value in enumerate(wanted)}
    rounded = distribute(by_name, dict.fromkeys(by_name, 100), total)
    assert rounded == {str(i): count for i, count in expected.items()}


def test_what_small_layers_cannot_do_without_comes_from_the_large_one() -> None:
    sizes = {f"small{i}": 1 for i in range(10)} | {"large": 100}
    wanted = {name: 0.1 * size for name, size in sizes.items()}
    assert distribute(wanted, sizes, 11) == dict.fromkeys(sizes, 1)
    assert distribute(wanted, sizes, 30) == dict.fromkeys(sizes, 1) | {"large": 20}


def test_erk_reproduces_the_published_densities_of_vgg16() -> None:
    # In the reverse order: densities belong to names.
    weights = empty(dict(reversed(VGG16.items())))
    for name, count in allocate("erk", weights, 0.99).items():
        size = math.prod(VGG16[name])
        assert count / size == pytest.approx(GOLDEN[name], abs=5e-5 + 1 / size)


def test_the_network_of_the_published_densities_can_be_built() -> None:
    net = build(Architecture("vgg16_bn_fc3", 10, (3, 32, 32), (0.5,) * 3, (0.2,) * 3))
    weights = {name: module.weight.detach() for name, module in prunable(net).items()}
    kept = allocate("erk", weights, 0.99)
    for (name, weight), density in zip(weights.items(), GOLDEN.values(), strict=True):
        assert kept[name] / weight.numel() == pytest.approx(density, abs=1e-4), name


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_erk_is_proportional_to_the_paper_s_ratio_below_density_one(sparsity: float) -> None:
    net = build(Architecture("vgg16_bn", 10, (3, 32, 32), (0.5,) * 3, (0.2,) * 3))
    weights = {name: module.weight.detach() for name, module in prunable(net).items()}
    kept = allocate("erk", weights, sparsity)
    ratios, dense = [], []
    for name, weight in weights.items():
        outputs, inputs, *kernel = weight.shape
        raw = (outputs + inputs + sum(kernel)) / (outputs * inputs * math.prod(kernel))
        if kept[name] == weight.numel():
            dense.append(raw)
        else:
            ratios.append((raw, kept[name] / weight.numel(), 1 / weight.numel()))
    scales = [density / raw for raw, density, _ in ratios]
    for raw, density, one_weight in ratios:
        assert density == pytest.approx(scales[-1] * raw, rel=2e-3, abs=2 * one_weight)
    # Layers are dense only where proportion would have asked for more than all of their weights.
    assert all(raw * max(scales) >= 0.999 for raw in dense)


def slow_lamp(values: list[Fraction]) -> list[Fraction]:
    squares = sorted(value**2 for value in values)
    return [square / sum(squares[i:]) for i, square in enumerate(squares)]


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000).filter(bool), min_size=1, max_size=30), st.randoms())
def test_lamp_scores_are_the_paper_s_whatever_the_order(values: list[int], random) -> None:
    scores = lamp_scores(torch.tensor(values, dtype=torch.float32))
    assert scores.dtype == torch.float64
    expected = [float(score) for score in slow_lamp([Fraction(value) for value in values])]
    assert scores.numpy() == pytest.approx(np.array(expected), rel=1e-12)
    assert scores[-1] == 1.0
    shuffled = random.sample(values, len(values))
    assert torch.equal(lamp_scores(torch.tensor(shuffled, dtype=torch.float32)), scores)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 100))
def test_lamp_scores_do_not_depend_on_the_scale_of_a_layer(scale: float, seed: int) -> None:
    weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(seed)).double()
    assert torch.allclose(lamp_scores(weight * scale), lamp_scores(weight), rtol=1e-10, atol=0)


def test_lamp_keeps_its_precision_in_a_layer_of_a_million_weights() -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    scores = lamp_scores(weight)
    squares = np.sort(weight.numpy().ravel().astype(np.longdouble) ** 2)
    tails = np.cumsum(squares[::-1])[::-1]
    assert scores[-1] == 1.0
    assert np.allclose(scores.numpy(), (squares / tails).astype(np.float64), rtol=1e-9, atol=0)


@settings(deadline=None)
@given(shapes, st.integers(0, 1000), st.data())
def test_lamp_counts_are_those_of_one_ranking_of_all_scores(
    shapes: list[Shape], seed: int, data: st.DataObject
) -> None:
    weights = named(shapes, seed)
    total = data.draw(st.integers(len(weights), sum(w.numel() for w in weights.values())))
    scores = [
        (float(score), name) for name, weight in weights.items() for score in lamp_scores(weight)
    ]
    ranked = sorted(scores, key=lambda pair: -pair[0])[:total]
    kept = lamp(weights, total)
    assert kept == {name: sum(owner == name for _, owner in ranked) for name in weights}
    assert min(kept.values()) >= 1


@settings(deadline=None)
@given(shapes, st.integers(0, 1000), st.booleans(), st.data())
def test_global_counts_are_those_of_one_ranking_in_which_each_layer_s_largest_comes_first(
    shapes: list[Shape], seed: int, tied: bool, data: st.DataObject
) -> None:
    weights = named(shapes, seed)
    if tied:
        weights = {name: weight.round() for name, weight in weights.items()}
    total = data.draw(st.integers(len(weights), sum(w.numel() for w in weights.values())))
    owners = np.concatenate([np.full(w.numel(), i) for i, w in enumerate(weights.values())])
    flat = [w.abs().numpy().ravel().copy() for w in weights.values()]
    for magnitudes in flat:
        magnitudes[magnitudes.argmax()] = np.inf
    chosen = owners[np.argsort(-np.concatenate(flat), kind="stable")[:total]]
    expected = np.bincount(chosen, minlength=len(weights)).tolist()
    assert list(global_magnitude(weights, total).values()) == expected


def test_a_layer_of_tiny_weights_keeps_its_largest_and_costs_the_others_one() -> None:
    weights = named([(10, 10), (10, 10)])
    weights["layer1.weight"] *= 1e-3
    assert allocate("global", weights, 0.9) == {"layer0.weight": 19, "layer1.weight": 1}
    # LAMP sees each layer at its own scale.
    assert min(allocate("lamp", weights, 0.9).values()) >= 8


def test_what_the_global_rule_ranks_can_be_given() -> None:
    weights = named([(4, 5), (10,)])
    scores = {
        "layer0.weight": torch.arange(20.0).reshape(4, 5) - 10,  # -10 ... 9
        "layer1.weight": torch.arange(10.0) - 2,  # -2 ... 7
    }
    weights["layer1.weight"] *= 1e-3  # by magnitude, all but one of these would go
    # The signed order counts: 9 8 7 6 5 4 of the first, 7 6 5 4 of the second.
    got = allocate("global", weights, 2 / 3, scores=scores)
    assert got == {"layer0.weight": 6, "layer1.weight": 4}
    # All scores below those of the other layer: still one weight.
    scores["layer1.weight"] -= 100
    assert allocate("global", weights, 2 / 3, scores=scores)["layer1.weight"] == 1


@pytest.mark.parametrize("rule", ["uniform", "erk", "lamp"])
def test_the_other_rules_do_not_look_at_scores(rule: str) -> None:
    weights = named([(8, 3, 3, 3), (16, 8, 3, 3), (7, 20)])
    scores = {name: -weight for name, weight in weights.items()}
    assert allocate(rule, weights, 0.8, scores=scores) == allocate(rule, weights, 0.8)


@every_rule
@pytest.mark.parametrize("dense", [{"b"}, {"a", "d"}])
def test_dense_layers_stay_whole_and_the_others_share_what_is_left(
    rule: str, dense: set[str]
) -> None:
    weights = normal({"a": (8, 3, 3, 3), "b": (16, 8), "c": (20, 16, 1, 1), "d": (7, 20)})
    sizes = {name: weight.numel() for name, weight in weights.items()}
    kept = allocate(rule, weights, 0.5, dense=dense)
    assert list(kept) == list(weights)
    assert sum(kept.values()) == sum(sizes.values()) // 2
    for name in weights:
        assert (kept[name] == sizes[name]) == (name in dense)
    # As if the dense layers were not there, at the density that remains.
    rest = {name: weight for name, weight in weights.items() if name not in dense}
    left = sum(kept[name] for name in rest)
    assert ALLOCATIONS[rule](rest, left) == {name: kept[name] for name in rest}


@every_rule
def test_dense_layers_that_leave_too_little_for_the_others_are_refused(rule: str) -> None:
    weights = named([(10, 10), (5, 4), (5, 6)])
    with pytest.raises(BadData, match=r"^allocation: -70 weights cannot serve 2 layers; lower"):
        allocate(rule, weights, 0.8, dense={"layer0.weight"})
    assert sum(allocate(rule, weights, 0.32, dense={"layer0.weight"}).values()) == 102


@every_rule
def test_counts_belong_to_names_not_to_positions(rule: str) -> None:
    weights = normal({"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (20, 16, 1, 1), "d": (7, 20)})
    kept = allocate(rule, weights, 0.8)
    assert len(set(kept.values())) == len(kept)
    for order in ("dcba", "bdac"):
        assert allocate(rule, {name: weights[name] for name in order}, 0.8) == kept


@every_rule
def test_weights_are_only_read(rule: str) -> None:
    weights = named([(8, 3, 3, 3), (16, 8, 3, 3), (7, 20)])
    before = {name: weight.clone() for name, weight in weights.items()}
    allocate(rule, weights, 0.8)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_erk_looks_at_shapes_alone() -> None:
    shapes = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (7, 20)}
    assert erk(normal(shapes, 0), 300) == erk(normal(shapes, 1), 300) == erk(empty(shapes), 300)


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    with pytest.raises(Refused, match="'erq' is not known; choose one of uniform, erk, lamp, glob"):
        allocate("erq", named([(3, 3)]), 0.5)
