"""The rounds of tickets: where they cut, what a cut leaves, and the way back to theta_0."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles.tickets import lottery_shares
from torch import nn
from torch.nn.utils import parametrize
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.channel_units import ChannelUnits
from advprune.masking import bare, current_masks, detach, fix, maskings, prunable_weights
from advprune.method import Progress
from advprune.tickets import (
    attach_whole,
    norms_left,
    paced,
    remember,
    rewind,
    rounds_over,
    sparsity_after,
)
from advprune.train import Schedule, fit
from advprune.types import Masks
from advprune.units import SingleWeights


def some_masks(net: nn.Module) -> Masks:
    draw = generator(3)
    weights = prunable_weights(net)
    return {name: torch.rand(w.shape, generator=draw) > 0.4 for name, w in weights.items()}


def masked_net() -> nn.Module:
    net = make_net()
    attach_whole(net)
    fix(net, some_masks(net))
    return net


# Rounds


@pytest.mark.parametrize("rounds", [1, 5, 20])
def test_every_round_takes_the_same_share_of_what_is_there(rounds: int) -> None:
    asked = 1 - 0.8**rounds
    for cut in range(rounds + 1):
        left = 1 - sparsity_after(cut, rounds, asked)
        assert left == pytest.approx(lottery_shares(cut, 0.2))


@pytest.mark.parametrize("asked", [0.0, 1 / 3, 0.9, 0.999])
def test_the_last_cut_lands_at_what_was_asked_to_the_last_bit(asked: float) -> None:
    assert [sparsity_after(cuts, cuts, asked) for cuts in (1, 3, 10)] == [asked] * 3


@pytest.mark.parametrize(("steps", "rounds"), [(100, 7), (60, 10), (6, 10), (5, 5), (3, 1)])
def test_the_rate_starts_again_with_the_step_after_a_cut_and_with_no_other(
    steps: int, rounds: int
) -> None:
    over = [rounds_over(Progress(step, steps, 1), rounds) for step in range(steps + 1)]
    assert over[0] == (0 if rounds <= steps else int(rounds / 2 / steps))
    assert over[-1] == rounds
    shares = [paced((step + 0.5) / steps, rounds) for step in range(steps)]
    assert all(0.0 <= share < 1.0 for share in shares)
    if rounds <= steps:
        restarts = [i + 1 for i, (first, then) in enumerate(pairwise(shares)) if then < first]
        cuts = [step for step in range(1, steps) if over[step] > over[step - 1]]
        if rounds < steps:
            assert restarts == cuts
        lengths = [then - first for first, then in pairwise([0, *cuts, steps])]
        assert len(lengths) == rounds
        assert max(lengths) - min(lengths) <= 1


# Cuts


def test_masks_are_put_in_force_in_place() -> None:
    net, images = make_net().eval(), make_batch().images
    expected, parameters = net(images), list(net.parameters())
    attach_whole(net)
    assert torch.equal(net(images), expected)
    held = [masking.get_buffer("mask") for _, _, masking in maskings(net)]
    masks = some_masks(net)
    fix(net, masks)
    assert same(current_masks(net), masks)
    assert all(a is m.get_buffer("mask") for a, (_, _, m) in zip(held, maskings(net), strict=True))
    assert {id(p) for p in net.parameters()} == {id(p) for p in parameters}


def test_a_network_that_is_bare_for_a_while_keeps_parameters_and_masks() -> None:
    net = masked_net()
    before, masks = snapshot(net), current_masks(net)
    parameters = {name: id(p) for name, p in net.named_parameters()}
    with bare(net):
        assert not list(maskings(net))
        assert set(snapshot(net)) == set(snapshot(make_net()))
        assert same(prunable_weights(net), prunable_weights(make_net()))
    assert same(snapshot(net), before) and same(current_masks(net), masks)
    assert {name: id(p) for name, p in net.named_parameters()} == parameters


def test_detaching_leaves_a_plain_network_of_the_same_function() -> None:
    net, images = masked_net().eval(), make_batch().images
    expected, masks = net(images), some_masks(net)
    assert same(detach(net), masks)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    assert torch.equal(net(images), expected)
    assert all(torch.equal(w != 0, masks[name]) for name, w in prunable_weights(net).items())


def test_what_went_ranks_below_all_that_is_there() -> None:
    net = masked_net()
    weights, masks = prunable_weights(make_net()), some_masks(net)
    name = next(iter(weights))
    # One that is there, and happens to be nothing.
    there = tuple(masks[name].nonzero()[0])
    for _, layer, _ in maskings(net):
        stack: Any = layer.parametrizations
        stack.weight.original.data[there] = 0.0
        break
    weights[name][there] = 0.0
    norms = norms_left(net, SingleWeights(net))
    for key, norm in norms.items():
        assert torch.equal(norm, torch.where(masks[key], weights[key].abs(), -1.0))
    assert norms[name][there] == 0.0


def test_a_channel_that_went_ranks_below_those_that_are_there() -> None:
    net = make_net()
    units = ChannelUnits(net, (1, 6, 6), "filter", 1, 1)
    draw = generator(5)
    kept = {name: torch.rand(size, generator=draw) > 0.4 for name, size in units.sizes.items()}
    attach_whole(net)
    fix(net, units.masks(kept))
    for name, norm in norms_left(net, units).items():
        rows = prunable_weights(net)[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(norm, torch.where(kept[name], rows, -1.0))


# theta_0


@pytest.mark.parametrize("masked", [False, True])
def test_all_that_was_learned_or_counted_goes_back(masked: bool) -> None:
    net = make_net()
    state = remember(net)
    start = snapshot(net)
    if masked:
        attach_whole(net)
    fit(net, make_images(), make_task(steps=1), Schedule(epochs=1, batch_size=14), Memory())
    masks = some_masks(net)
    if masked:
        fix(net, masks)
    rewind(net, state)
    if masked:
        assert same(current_masks(net), masks)
        with bare(net):
            assert same(snapshot(net), start)
    else:
        assert same(snapshot(net), start)
    assert {"theta_0/" + key for key in start} == set(state)
    assert same({key: state[f"theta_0/{key}"] for key in start}, start)


def test_training_does_move_all_of_that() -> None:
    """The check above can fail."""
    net = make_net()
    start = snapshot(net)
    fit(net, make_images(), make_task(steps=1), Schedule(epochs=1, batch_size=14), Memory())
    constant = {"normalize.mean", "normalize.std"}
    after = snapshot(net)
    assert not any(torch.equal(start[key], after[key]) for key in start.keys() - constant)
