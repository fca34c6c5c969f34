"""HARP over channels: one mask for what goes together, and a budget of multiply-accumulates."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from searching import IMAGES, SCHEDULE, search
from toy import Memory, make_net, make_task, same

from advprune.channel_masking import learned
from advprune.errors import Refused
from advprune.masking import plain_state, prunable_weights
from advprune.method import Optimisation, Progress
from advprune.methods.harp import Harp
from advprune.rates import cost_of, overrun, rated
from advprune.stats import macs
from advprune.train import fit
from export.compact import compact

TASK = make_task(steps=1)
NARROW: dict[str, Any] = {"min_channels": 1, "round_to": 1}


def harp(sparsity: float = 0.5, **options: Any) -> Harp:
    return Harp(sparsity=sparsity, granularity="channel", **(NARROW | options))


def test_the_first_masks_are_those_of_the_l1_norms_of_what_reads_a_channel() -> None:
    net = make_net()
    weights = {name: weight.clone() for name, weight in prunable_weights(net).items()}
    harp(start_density=0.5).start(net, TASK, Optimisation(0.1, 5e-4, 12))
    readers = {"conv1": "conv2", "conv2": "conv3", "conv3": "fc"}
    for maker, reader in readers.items():
        scored = learned(net)[f"network.{maker}.weight"]
        norms = weights[f"network.{reader}.weight"].abs().transpose(0, 1).flatten(1).sum(dim=1)
        best = norms.topk(int(scored.mask.sum())).indices.sort().values
        assert torch.equal(scored.mask.nonzero().flatten(), best)
        assert torch.allclose(scored.scores / scored.scores.max(), norms / norms.max())


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_the_cut_network_costs_what_uniform_widths_would(sparsity: float) -> None:
    net = make_net()
    dense = macs(net, TASK.shape)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    masks = search(harp(sparsity), net)
    plain = make_net()
    plain.load_state_dict(state)
    weights = prunable_weights(plain)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name] *= mask
    small = compact(plain, TASK.shape)
    assert small.macs[0] == dense
    budget = uniform_macs(1 - sparsity)
    assert small.macs[1] <= budget * (1 + 1e-9)
    # No more than one channel of the widest group is left unspent.
    assert small.macs[1] > budget - dense / 8
    assert budget / dense < 1 - sparsity  # widths of both sides


def uniform_macs(density: float) -> float:
    """Of the toy network with widths 8, 16 and 20 scaled, 6 x 6 pixels, then 3 x 3."""
    a, b, c = 8 * density, 16 * density, 20 * density
    return 36 * 9 * a + 9 * 9 * a * b + 9 * b * c + 3 * c


@pytest.mark.parametrize("learn", ["both", "rates", "scores"])
@pytest.mark.parametrize("annealing", ["budget", "gamma"])
def test_every_way_of_learning_lands(learn: Any, annealing: Any) -> None:
    method = harp(0.5, learn=learn, annealing=annealing, start_density=0.5)
    masks = search(method, make_net())
    method.units(make_net(), TASK).check(masks, 0.5)
    with pytest.raises(Exception, match=r"sparsity 0\.8 asks for"):
        method.units(make_net(), TASK).check(masks, 0.8)


def test_what_learns_is_scores_and_rates_of_groups_and_batch_norm() -> None:
    net, method = make_net(), harp()
    optimisation = Optimisation(0.1, 5e-4, 12)
    method.start(net, TASK, optimisation)
    rest, rates = method.groups(net, optimisation)
    assert len(rates["params"]) == 3
    assert {tuple(p.shape) for p in rates["params"]} == {()}
    assert sorted(p.numel() for p in rest["params"]) == sorted([8, 16, 20, 8, 8, 16, 16])


def test_the_gradient_of_a_rate_is_that_of_the_macs() -> None:
    net, method = make_net(), harp(0.5, annealing="gamma", start_density=0.9)
    state = method.start(net, TASK, Optimisation(0.1, 5e-4, 12))
    layers = rated(net)
    over = overrun(layers, 0.5, cost_of(layers, state))
    excess = uniform_macs(0.9) / uniform_macs(0.5) - 1
    assert float(over.detach()) == pytest.approx(excess, rel=1e-4)
    over.backward()
    # Halfway between conv1 and conv3, conv2's outputs cost the most here.
    slopes = {n: float(m.rate.grad) for n, m in layers.items() if m.rate.grad is not None}
    assert len(slopes) == 3
    assert all(slope > 0 for slope in slopes.values())
    assert slopes["network.conv1.weight"] > slopes["network.conv3.weight"]


def test_a_search_that_stays_above_the_budget_is_refused() -> None:
    net, method = make_net(), harp(0.5, annealing="gamma", start_density=0.9, gamma=1e-6)
    state = method.start(net, TASK, Optimisation(0.1, 5e-4, 12))
    method.update(net, state, Progress(12, 12, 6), TASK)
    with pytest.raises(Refused, match=r"the search ended at 2\.\d\d times the target density 0\.5"):
        method.finish(net, state, TASK)


def test_weights_are_left_alone_and_the_search_resumes_to_the_bit() -> None:
    net, memory = make_net(), Memory()
    before = {k: v.clone() for k, v in prunable_weights(net).items()}
    expected = search(harp(), net, memory=memory)
    state = plain_state(net)
    assert all(torch.equal(state[k], v) for k, v in before.items())
    for saved in memory.saves.values():
        assert same(search(harp(), make_net(), memory=Memory(copy.deepcopy(saved))), expected)


def test_scores_move_the_masks() -> None:
    net = make_net()
    fixed = search(harp(learn="scores", start_allocation="uniform"), make_net())
    method = harp(learn="scores")
    task = replace(TASK, shape=IMAGES.shape)
    schedule = replace(SCHEDULE, lr=5.0, epochs=6)
    moved = method.finish(net, fit(net, IMAGES, task, schedule, Memory(), method).state, task)
    assert [int(mask.sum()) for mask in moved.values()] == [int(m.sum()) for m in fixed.values()]
    assert not same(moved, fixed)
