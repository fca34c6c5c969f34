"""Masks at work: what is pruned is zero in every forward, and every gradient is the paper's."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import make_batch, make_net, make_split, same, snapshot

from advprune.frozen import frozen
from advprune.masking import (
    Fixed,
    Scored,
    attach,
    bake,
    current_masks,
    freeze_layers,
    hold,
    maskings,
    plain_state,
    prunable_weights,
    scaled_scores,
)
from advprune.masks import keep_top, sparsity_of
from advprune.models import prunable
from advprune.repro import seeded
from advprune.types import Masks

IMAGES = make_split(12).images / 255


def random_masks(net: nn.Module, density: float = 0.3, seed: int = 0) -> Masks:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=draw) < density
        for name, weight in prunable_weights(net).items()
    }


def multiplied(net: nn.Module, masks: Masks) -> nn.Module:
    """The oracle: a plain network whose pruned weights were overwritten by zeros."""
    plain = deepcopy(net)
    for name, module in prunable(plain).items():
        module.weight.data[~masks[name]] = 0.0
    return plain


def attach_fixed(net: nn.Module) -> Masks:
    masks = random_masks(net)
    hold(net, masks)
    return masks


def attach_scored(net: nn.Module) -> Masks:
    attach(net, lambda _, weight: Scored(weight, max(1, weight.numel() // 4)))
    # Elsewhere than at the start, where the masks are those of the magnitudes.
    draw = torch.Generator().manual_seed(1)
    for _, _, masking in maskings(net):
        assert isinstance(masking, Scored)
        masking.scores.data.normal_(generator=draw)
        masking.refresh()
    return current_masks(net)


both = pytest.mark.parametrize("mask", [attach_fixed, attach_scored])
Mask = Callable[[nn.Module], Masks]


@both
@pytest.mark.parametrize("training", [True, False])
def test_a_masked_network_computes_as_if_pruned_weights_were_zero(
    mask: Mask, training: bool
) -> None:
    net = make_net().train(training)
    original = deepcopy(net)
    masks = mask(net)
    assert 0.5 < sparsity_of(masks) < 0.9
    for name, module in prunable(net).items():
        assert torch.all(module.weight[~masks[name]] == 0.0)
        assert torch.equal(
            module.weight[masks[name]], prunable_weights(original)[name][masks[name]]
        )
    assert torch.equal(net(IMAGES), multiplied(original, masks).train(training)(IMAGES))


@both
def test_baking_gives_the_same_function_bitwise_and_leaves_the_original_alone(mask: Mask) -> None:
    net = make_net()
    net(IMAGES)  # Statistics worth copying.
    masks = mask(net)
    before = snapshot(net)
    baked = bake(net, make_net(seed=9))
    assert torch.equal(baked.eval()(IMAGES), net.eval()(IMAGES))
    for name, module in prunable(baked).items():
        assert type(module) in (nn.Conv2d, nn.Linear)
        assert not parametrize.is_parametrized(module)
        assert torch.all(module.weight[~masks[name]] == 0.0)
    # The original keeps its parametrisations, and shares no memory with what was baked.
    for module in prunable(baked).values():
        module.weight.data.fill_(1.0)
    assert same(snapshot(net), before)
    assert all(parametrize.is_parametrized(module) for module in prunable(net).values())


@both
def test_the_plain_state_has_the_names_and_shapes_of_an_untouched_network(mask: Mask) -> None:
    net = make_net()
    mask(net)
    state = plain_state(net)
    vanilla = make_net().state_dict()
    assert state.keys() == vanilla.keys()
    assert all(state[key].shape == vanilla[key].shape for key in state)
    assert not any(value.requires_grad for value in state.values())


def test_a_network_without_masks_bakes_to_itself() -> None:
    net = make_net()
    assert same(bake(net, make_net(seed=9)).state_dict(), net.state_dict())


def test_a_different_architecture_is_not_baked_into() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key"):
        bake(make_net(), nn.Sequential(nn.Conv2d(1, 8, 3)))


@both
def test_frozen_changes_logits_by_rounding_alone_and_puts_all_back(mask: Mask) -> None:
    net = make_net()
    net(IMAGES)
    mask(net)
    before = snapshot(net)
    expected = deepcopy(net).eval()(IMAGES)
    with frozen(net):
        assert torch.allclose(net(IMAGES), expected, rtol=1e-5, atol=1e-6)
        # The same weights at every call: computed once, on entry.
        weights = [module.weight for module in prunable(net).values()]
        again = [module.weight for module in prunable(net).values()]
        assert all(a is b for a, b in zip(weights, again, strict=True))
    assert net.training
    assert same(snapshot(net), before)


def straight_through(
    forward: Callable[[Tensor, Tensor], Tensor], layer: nn.Conv2d | nn.Linear, x: Tensor
) -> tuple[Tensor, Tensor, Scored]:
    """dL/dS of the layer, and theta * dL/d(theta * M) * sign(S) from a plain weight."""
    weight = layer.weight.detach().clone()
    masking = Scored(weight, weight.numel() // 3)
    masking.scores.data.normal_(generator=torch.Generator().manual_seed(3))
    masking.refresh()
    layer.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", masking)
    layer(x).square().sum().backward()
    assert masking.scores.grad is not None

    effective = (weight * masking.mask).requires_grad_()
    (gradient,) = torch.autograd.grad(forward(x, effective).square().sum(), effective)
    return masking.scores.grad, weight * gradient * masking.scores.detach().sign(), masking


def test_gradients_pass_straight_through_to_kept_and_pruned_scores_of_a_convolution() -> None:
    with seeded(0):
        layer = nn.Conv2d(3, 5, 3, padding=1, stride=2, bias=False)
        x = torch.randn(4, 3, 8, 8)
    got, expected, masking = straight_through(
        lambda x, weight: F.conv2d(x, weight, padding=1, stride=2), layer, x
    )
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
    for part in (masking.mask, ~masking.mask):
        assert part.any()
        assert (got[part] != 0).all()


def test_gradients_pass_straight_through_to_kept_and_pruned_scores_of_a_linear_layer() -> None:
    with seeded(0):
        layer, x = nn.Linear(7, 6, bias=False), torch.randn(4, 7)
    got, expected, _ = straight_through(F.linear, layer, x)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_frozen_weights_and_biases() -> None:
    net = make_net()
    freeze_layers(net)
    attach(net, lambda _, weight: Scored(weight, weight.numel() // 2))
    net(IMAGES).sum().backward()
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in net.named_parameters() if p.grad is not None}
    # What learns is every layer's scores, and both batch norms.
    assert {name.rpartition(".")[2] for name in learning} == {"scores", "weight", "bias"}
    assert {name.split(".")[1] for name in learning if "scores" not in name} == {"bn1", "bn2"}
    assert sum("scores" in name for name in learning) == len(prunable(net))


@pytest.mark.parametrize("keep", [1, 50, 200])
def test_scaled_scores_select_by_magnitude(keep: int) -> None:
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Scored(weight, keep).mask, keep_top(weight.abs(), keep))


def test_scaled_scores_are_the_paper_s() -> None:
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = math.sqrt(6 / (6 * 3 * 3)) * weight.double() / weight.double().abs().max()
    assert torch.allclose(scaled_scores(weight).double(), expected, rtol=1e-6)
    assert torch.equal(scaled_scores(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_masks_depend_neither_on_the_sign_nor_on_the_scale_of_scores() -> None:
    masking = Scored(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), 11)
    first = masking.mask.clone()
    for factor in (-1.0, 4.0, -0.125):
        masking.scores.data *= factor
        masking.refresh()
        assert torch.equal(masking.mask, first)


def test_masks_change_in_refresh_and_never_in_forward() -> None:
    masking = Scored(torch.arange(1.0, 7.0), 2)
    assert masking.mask.nonzero().flatten().tolist() == [4, 5]
    masking.scores.data = masking.scores.data.flip(0)
    weight = torch.arange(1.0, 7.0)
    assert masking(weight).nonzero().flatten().tolist() == [4, 5]
    masking.refresh()
    assert masking(weight).nonzero().flatten().tolist() == [0, 1]


def test_training_with_momentum_and_decay_never_revives_a_held_weight() -> None:
    net = make_net()
    masks = random_masks(net)
    hold(net, masks)
    before = prunable_weights(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    batch = make_batch()
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(net(batch.images), batch.labels).backward()
        optimiser.step()
        for name, weight in prunable_weights(net).items():
            assert torch.all(weight[~masks[name]] == 0.0)
    after = prunable_weights(net)
    assert all((after[name] != before[name])[masks[name]].all() for name in masks)


def test_names_are_those_of_the_weights_in_the_order_of_the_network() -> None:
    net = make_net()
    expected = [name for name in net.state_dict() if name in prunable(net)]
    masks = random_masks(net)
    hold(net, {name: mask.clone() for name, mask in masks.items()})
    assert [name for name, _, _ in maskings(net)] == expected
    assert all(isinstance(masking, Fixed) for _, _, masking in maskings(net))
    current = current_masks(net)
    assert list(current) == expected
    assert same(current, masks)
    # Copies: whoever gets them cannot change what the network computes.
    for mask in current.values():
        mask.fill_(True)
    assert same(current_masks(net), masks)
