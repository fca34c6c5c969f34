"""The matrix-free second-order terms are those of the factors built as matrices."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import mad as oracle
from torch import Tensor, nn
from toy import generator

from advprune.curvature import recorded, row_quadratic
from advprune.models import prunable
from advprune.repro import seeded

LAYERS: dict[str, tuple[type[nn.Module], tuple, dict[str, Any]]] = {
    "plain": (nn.Conv2d, (3, 4, 3), {"bias": False}),
    "bias": (nn.Conv2d, (3, 4, 3), {"bias": True}),
    "pointwise": (nn.Conv2d, (4, 5, 1), {"bias": True}),
    "stride": (nn.Conv2d, (3, 4, 3), {"stride": 2, "bias": True}),
    "padding": (nn.Conv2d, (3, 4, (3, 2)), {"padding": (2, 1), "bias": True}),
    "dilation": (nn.Conv2d, (2, 3, 3), {"dilation": 2, "padding": 1, "bias": False}),
    "groups": (nn.Conv2d, (4, 6, 3), {"groups": 2, "padding": 1, "stride": 2, "bias": True}),
    "depthwise": (nn.Conv2d, (4, 4, 3), {"groups": 4, "padding": 1, "bias": False}),
    "linear": (nn.Linear, (7, 4), {"bias": True}),
    "linear without bias": (nn.Linear, (7, 4), {"bias": False}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def case(
    name: str, dtype: torch.dtype = torch.float64, images: int = 3
) -> tuple[nn.Conv2d | nn.Linear, Tensor, Tensor, Tensor, Tensor | None]:
    """A layer, its inputs, gradients at its outputs, and a change of weights and biases."""
    cls, arguments, options = LAYERS[name]
    with seeded(0, name):
        layer = cls(*arguments, **options).to(dtype)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        shape = (7,) if isinstance(layer, nn.Linear) else (arguments[0], 5, 6)
        a = torch.randn(images, *shape, dtype=dtype)
        g = torch.randn_like(layer(a)).detach()
        change = torch.randn_like(layer.weight).detach()
        bias_change = None if layer.bias is None else torch.randn_like(layer.bias).detach()
    return layer, a, g, change, bias_change


def close(got: Tensor, expected: Tensor, relative: float) -> bool:
    """Equal up to a share of the largest value: single terms may nearly vanish."""
    return float((got - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.parametrize(
    ("change", "expected"), [([1.0, -1.0], [1.5, 1.5]), ([1.0, -3.0], [-1.5, 22.5])]
)
def test_the_worked_example_comes_out(change: list[float], expected: list[float]) -> None:
    """A = [[2, 1], [1, 2]] and G_ii = 3; the other output channel has G = 0."""
    g = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.0]])
    # Two images at one position, or one image at two positions.
    a = torch.tensor([[3**0.5, 3**0.5], [1.0, -1.0]])
    linear = nn.Linear(2, 2, bias=False)
    row, other = torch.tensor(change), torch.ones(2)
    got, none = row_quadratic(linear, a, g, torch.stack([row, other]), None)
    assert none is None
    assert got[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert got[1].tolist() == [0.0, 0.0]
    conv = nn.Conv2d(2, 2, 1, bias=False)
    a, g = (value.t()[None, :, :, None] for value in (a * 2**0.5, g))
    got, _ = row_quadratic(conv, a, g, torch.stack([row, other])[..., None, None], None)
    assert got[0].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert got[1].flatten().tolist() == [0.0, 0.0]


@every_layer
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_no_matrix_gives_what_the_matrices_give(
    name: str, dtype: torch.dtype, relative: float
) -> None:
    layer, a, g, change, bias_change = case(name, dtype)
    got, got_bias = row_quadratic(layer, a, g, change, bias_change)
    expected, expected_bias = oracle.quadratic(layer, a, g, change, bias_change)
    assert got.shape == layer.weight.shape
    assert got.dtype == dtype
    assert close(got, expected, relative)
    if layer.bias is None:
        assert got_bias is None
    else:
        assert got_bias is not None and expected_bias is not None
        assert close(got_bias, expected_bias, relative)


def test_the_positions_of_a_linear_layer_count_as_those_of_a_convolution() -> None:
    """On (B, T, I), as transformers have it, a linear layer is a convolution with a 1x1 kernel."""
    conv, a, g, change, bias_change = case("pointwise")
    linear = nn.Linear(4, 5).double()
    expected, expected_bias = row_quadratic(conv, a, g, change, bias_change)
    a, g = (value.flatten(2).transpose(1, 2) for value in (a, g))
    got, got_bias = row_quadratic(linear, a, g, change.flatten(1), bias_change)
    assert close(got, expected.flatten(1), 1e-10)
    assert got_bias is not None and expected_bias is not None
    assert close(got_bias, expected_bias, 1e-10)


@every_layer
def test_a_row_sums_to_half_its_quadratic_form_which_is_not_negative(name: str) -> None:
    layer, a, g, change, bias_change = case(name)
    got, got_bias = row_quadratic(layer, a, g, change, bias_change)
    sums = got.flatten(1).sum(dim=1) + (0 if got_bias is None else got_bias)
    # dW_i A dW_i^T is the mean square of what the change does to the output, over S.
    with torch.no_grad():
        layer.weight.copy_(change)
        if layer.bias is not None:
            layer.bias.copy_(bias_change)  # pyright: ignore
        output = oracle.gradient_rows(layer, layer(a))
    positions = len(output) // len(a)
    form = output.square().mean(dim=0) / positions
    diagonal = len(a) * positions * oracle.gradient_rows(layer, g).square().sum(dim=0)
    assert bool((sums >= 0).all())
    assert close(sums, 0.5 * diagonal * form, 1e-10)
    assert bool((got < 0).any())  # though single terms may be


@every_layer
def test_the_factors_multiply_to_those_of_kfc(name: str) -> None:
    """A (x) G is S mean(a a^T) (x) mean(g g^T), with g of each image's own loss."""
    layer, a, g, change, bias_change = case(name)
    got, _ = row_quadratic(layer, a, g, change, bias_change)
    own = len(a) * oracle.gradient_rows(layer, g)
    positions = len(own) // len(a)
    per_group = len(change) // getattr(layer, "groups", 1)
    changed = change.flatten(1)
    if bias_change is not None:
        changed = torch.cat([changed, bias_change[:, None]], dim=1)
    for i, row in enumerate(changed):
        rows = oracle.unfolded(layer, a, i // per_group, bias_change is not None)
        second_moment = rows.t() @ rows / len(rows)
        hessian = positions * own[:, i].square().mean() * second_moment
        expected = (0.5 * row * (hessian @ row))[: change[0].numel()]
        assert close(got[i].flatten(), expected, 1e-10)


@every_layer
def test_a_batch_twice_over_says_the_same(name: str) -> None:
    layer, a, g, change, bias_change = case(name)
    once, _ = row_quadratic(layer, a, g, change, bias_change)
    # Gradients are those of a mean, which halve.
    a, g = a.repeat_interleave(2, 0), g.repeat_interleave(2, 0) / 2
    twice, _ = row_quadratic(layer, a, g, change, bias_change)
    assert close(twice, once, 1e-10)


@every_layer
def test_terms_are_quadratic_in_the_change_and_in_the_gradient(name: str) -> None:
    layer, a, g, change, bias_change = case(name)
    once, _ = row_quadratic(layer, a, g, change, bias_change)
    larger = None if bias_change is None else 3 * bias_change
    assert close(row_quadratic(layer, a, g, 3 * change, larger)[0], 9 * once, 1e-10)
    assert close(row_quadratic(layer, a, 3 * g, change, bias_change)[0], 9 * once, 1e-10)


def test_the_padding_mode_is_the_layer_s_own() -> None:
    _, a, g, change, bias_change = case("padding")
    circular = nn.Conv2d(3, 4, (3, 2), padding=(2, 1), padding_mode="circular").double()
    got, _ = row_quadratic(circular, a, g, change, bias_change)
    padded = F.pad(a, (1, 1, 2, 2), mode="circular")
    bare = nn.Conv2d(3, 4, (3, 2)).double()
    expected, _ = oracle.quadratic(bare, padded, g, change, bias_change)
    assert close(got, expected, 1e-10)


def test_neither_the_layer_nor_what_is_handed_in_changes() -> None:
    layer, a, g, change, bias_change = case("bias")
    given = [
        value for value in (a, g, change, bias_change, *layer.parameters()) if value is not None
    ]
    before = [value.clone() for value in given]
    with torch.no_grad():  # a caller's choice that must not matter
        row_quadratic(layer, a, g, change, bias_change)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    assert all(value.grad is None for value in given)
    assert [value.requires_grad for value in given] == [False] * 4 + [True] * 2


def test_for_one_image_and_one_position_it_is_the_fisher_block_of_the_true_label() -> None:
    """There the Kronecker form is exact: dlog p(y) / dW_i squared, by autograd."""
    with seeded(3):
        net = nn.Linear(5, 4).double()
        x, change, bias_change = (torch.randn(*s).double() for s in [(1, 5), (4, 5), (4,)])
    y = torch.tensor([2])
    weight, bias = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    joint = torch.cat([weight, bias[:, None]], dim=1)
    changed = torch.cat([change, bias_change[:, None]], dim=1)
    expected = torch.stack(
        [0.5 * d * (torch.outer(s, s) @ d) for s, d in zip(joint, changed, strict=True)]
    )
    logits = net(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(logits, y), logits)
    got, got_bias = row_quadratic(net, x, g, change, bias_change)
    assert got_bias is not None
    assert close(torch.cat([got, got_bias[:, None]], dim=1), expected, 1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_every_call_is_recorded_with_the_output_before_anything_overwrites_it(
    inplace: bool,
) -> None:
    layer = nn.Linear(3, 3)
    relu = nn.ReLU(inplace=inplace)
    net = nn.Sequential(layer, relu, layer, relu)
    x = torch.randn(4, 3, generator=generator(2))
    with recorded(prunable(net)) as records:
        net(x)
    inputs, outputs = records["0.weight"].inputs, records["0.weight"].outputs
    assert len(inputs) == len(outputs) == 2
    assert torch.equal(inputs[0], x)
    assert torch.equal(inputs[1], outputs[0].clamp_min(0))
    for a, output in zip(list(inputs), list(outputs), strict=True):
        assert not a.requires_grad
        assert torch.equal(output, layer(a))
    assert bool((outputs[0] < 0).any())
    net(x)
    assert len(inputs) == 2  # nothing is recorded any more
