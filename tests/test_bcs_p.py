"""BCS-P: signs stay, what reaches zero dies, as many are born anywhere, at every step."""

import numpy as np
import pytest
import torch
from oracles import bcs_p as oracle
from torch import Tensor, nn
from toy import generator, make_batch, make_net, make_task

from advprune.events import Event
from advprune.masking import current_masks, maskings, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State
from advprune.methods.bcs_p import BcsP, distinct, shared
from advprune.repro import generator as seeded
from advprune.rewiring import BORN

TASK = make_task(steps=1)
SIZES = {name: weight.numel() for name, weight in prunable_weights(make_net()).items()}
TOTAL = sum(SIZES.values())
CONV1, CONV2, CONV3, HEAD = SIZES


def started(net: nn.Module, sparsity: float = 0.8, seed: int = 0) -> tuple[BcsP, State]:
    method = BcsP(sparsity=sparsity)
    return method, method.start(net, make_task(seed), Optimisation(0.1, 5e-4, steps=100))


def thetas(net: nn.Module) -> dict[str, Tensor]:
    return {name: layer.parametrizations.weight.original for name, layer, _ in maskings(net)}  # pyright: ignore


def of(net: nn.Module, buffer: str) -> dict[str, Tensor]:
    return {name: it.get_buffer(buffer).clone() for name, _, it in maskings(net)}


def reach(step: int) -> Progress:
    return Progress(step, 100, 10)


# The start


def test_weights_are_signs_times_what_is_positive_where_they_are_on() -> None:
    net, dense = make_net(), prunable_weights(make_net())
    started(net)
    masks, signs = of(net, "mask"), of(net, "sign")
    for name, theta in thetas(net).items():
        assert torch.equal(theta > 0, masks[name])
        assert set(signs[name].unique().tolist()) == {-1.0, 1.0}
        old = masks[name] & (theta > BORN * 10)
        assert torch.equal(prunable_weights(net)[name][old], dense[name][old])
        assert torch.equal(signs[name], dense[name].sign())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9])
def test_outer_layers_are_dense_and_the_budget_is_full(sparsity: float) -> None:
    net = make_net()
    method, _ = started(net, sparsity)
    first, budget = method._first(make_net()), kept_count(TOTAL, sparsity)
    outer = SIZES[CONV1] + SIZES[HEAD]
    share = min(0.6, 0.5 * budget / outer)
    for name in (CONV1, HEAD):
        assert first[name] == pytest.approx(share * SIZES[name], abs=1)
    for name in (CONV2, CONV3):
        assert first[name] == pytest.approx(0.5 * (1 - sparsity) * SIZES[name], abs=1)
    born = {name: int((theta == BORN).sum()) for name, theta in thetas(net).items()}
    kept = {name: int(mask.sum()) for name, mask in current_masks(net).items()}
    assert sum(kept.values()) == budget
    assert {name: kept[name] - born[name] for name in kept} == first


# A step


def test_a_step_is_sgd_then_noise_and_what_came_to_zero_is_off() -> None:
    net = make_net().eval()
    method, state = started(net)
    optimisation = Optimisation(0.1, 0.0, steps=100, momentum=0.0)
    optimiser = method.optimiser(method.groups(net, optimisation), optimisation)
    before = {name: theta.detach().double().numpy() for name, theta in thetas(net).items()}
    masks, signs = of(net, "mask"), of(net, "sign")
    method.loss(net, state, make_batch(), TASK).value.backward()
    slopes = {name: theta.grad.double().numpy() for name, theta in thetas(net).items()}  # pyright: ignore
    optimiser.step()
    assert method.update(net, state, reach(7), TASK) == Event.REWIRE
    draw, deaths = seeded(method.random_seed(TASK, "noise"), 7), 0
    for name, theta in thetas(net).items():
        on = masks[name].numpy()
        noise = np.zeros(on.shape)
        noise[on] = torch.randn(int(on.sum()), generator=draw)
        moved, alive = oracle.step(before[name], on, slopes[name], noise, 0.1)
        now = theta.detach().numpy()
        np.testing.assert_allclose(now[alive], moved[alive], rtol=1e-4, atol=1e-7)
        born = (now > 0) & ~alive
        assert np.all(now[born] == np.float32(BORN))
        assert np.all(now[~alive & ~born] == 0.0)
        assert np.array_equal(current_masks(net)[name].numpy(), now > 0)
        deaths += int((on & ~alive).sum())
    assert deaths > 10
    assert sum(int(mask.sum()) for mask in current_masks(net).values()) == kept_count(TOTAL, 0.8)
    assert all(torch.equal(sign, signs[name]) for name, sign in of(net, "sign").items())


def test_where_nothing_died_nothing_is_born() -> None:
    net = make_net()
    method, state = started(net)
    for theta in thetas(net).values():
        theta.data += 0.1 * (theta > 0)
    masks = of(net, "mask")
    assert method.update(net, state, reach(3), TASK) is None
    assert all(torch.equal(mask, masks[name]) for name, mask in of(net, "mask").items())


def test_noise_is_a_millionth_of_the_learning_rate() -> None:
    net = make_net()
    method, state = started(net, sparsity=0.0)
    before = {}
    for name, theta in thetas(net).items():
        theta.data.fill_(2.0**-10)  # a grid fine enough to see 1e-7
        before[name] = theta.detach().double().clone()
    method.update(net, state, reach(1), TASK)
    noise = torch.cat([(t.detach() - before[n]).flatten() for n, t in thetas(net).items()])
    assert noise.std().item() == pytest.approx(1e-7, rel=0.1)
    assert abs(noise.mean().item()) < 1e-8


def test_a_layer_that_would_die_out_gets_a_birth_first() -> None:
    net = make_net()
    method, state = started(net)
    thetas(net)[CONV1].data.fill_(-1.0)
    method.update(net, state, reach(2), TASK)
    masks = current_masks(net)
    assert masks[CONV1].any()
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(TOTAL, 0.8)


def test_what_is_born_depends_on_the_seed_and_the_step() -> None:
    found = []
    for seed, step in ((0, 1), (0, 1), (1, 1), (0, 2)):
        net = make_net()
        method, state = started(net)
        thetas(net)[CONV2].data *= -1.0
        method.update(net, state, reach(step), make_task(seed))
        found.append(torch.cat([mask.flatten() for mask in current_masks(net).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


# Births


def test_births_fall_on_layers_in_proportion_to_their_sizes() -> None:
    sizes = torch.tensor([100_000, 300_000, 600_000])
    births = shared(10_000, sizes, torch.tensor([1, 1, 1]), generator(0))
    assert int(births.sum()) == 10_000
    # Six standard deviations of the largest are 294.
    assert (births - torch.tensor([1000, 3000, 6000])).abs().max() < 294


def test_what_a_full_layer_has_no_room_for_goes_to_the_others() -> None:
    sizes, alive = torch.tensor([1000, 10, 5]), torch.tensor([995, 10, 0])
    for count in (1, 5, 10):
        births = shared(count, sizes, alive, generator(1))
        assert int(births.sum()) == count
        assert births[1] == 0 and births[2] >= 1 and bool((births <= sizes - alive).all())


@pytest.mark.parametrize(("count", "high"), [(0, 5), (1, 100), (30, 100), (60, 100), (100, 100)])
def test_places_are_distinct_and_all_are_as_likely(count: int, high: int) -> None:
    draw, seen = generator(0), torch.zeros(high)
    for _ in range(400):
        places = distinct(count, high, draw)
        assert len(places.unique()) == count
        seen[places] += 1
    share = count / high
    assert (seen / 400 - share).abs().max() <= 6 * (share * (1 - share) / 400) ** 0.5
