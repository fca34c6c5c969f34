"""Robust tickets: rounds that cut each layer by size and begin again at theta_0."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import tickets as oracle
from oracles.ranking import largest
from torch import Tensor, nn
from toy import Memory, generator, make_images, make_net, make_task, same, snapshot

from advprune.errors import Refused
from advprune.events import Event
from advprune.masking import bare, current_masks, maskings, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State
from advprune.methods.cosentino19 import Cosentino19
from advprune.tickets import sparsity_after
from advprune.train import Schedule, fit
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=1)
NAMES = list(prunable_weights(make_net()))
HEAD = NAMES[-1]
ROUNDS = 4
SCHEDULE = Schedule(epochs=ROUNDS, batch_size=14, lr=0.1, validate_every=0)


def started(method: Cosentino19, net: nn.Module) -> State:
    return method.start(net, TASK, Optimisation(0.1, 5e-4, steps=100))


def jolt(net: nn.Module, seed: int) -> None:
    """What training might do to the weights."""
    draw = generator(seed)
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)


def test_the_smallest_of_each_layer_go_of_those_that_are_there() -> None:
    method, net = Cosentino19(sparsity=0.8, rounds=ROUNDS), make_net()
    state = started(method, net)
    there = {name: np.ones(w.shape, dtype=bool) for name, w in prunable_weights(net).items()}
    for cut in range(1, ROUNDS + 1):
        jolt(net, cut)
        sizes = {name: abs(w.numpy()) for name, w in prunable_weights(net).items()}
        event = method.update(net, state, Progress(25 * cut, 100, 5), TASK)
        assert event == Event.PRUNE | Event.REWIND
        for name, mask in current_masks(net).items():
            ranked = {name: np.where(there[name], sizes[name], -1.0)}
            assert np.array_equal(mask.numpy(), largest(ranked, int(mask.sum()))[name])
            assert not (mask.numpy() & ~there[name]).any()
            there[name] = mask.numpy()
        kept = sum(int(mask.sum()) for mask in there.values())
        total = sum(mask.size for mask in there.values())
        assert kept == kept_count(total, sparsity_after(cut, ROUNDS, 0.8))


def test_every_layer_keeps_the_same_share_but_the_logits_which_lose_half_as_fast() -> None:
    """Large enough that rounding does not show, and with the shares of the paper."""
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100), nn.Linear(100, 100))
    for rounds in (1, 5, 10):
        others, head = oracle.lottery_shares(rounds, 0.2), oracle.lottery_shares(rounds, 0.1)
        kept = 80_000 * others + 10_000 * head
        asked = 1 - others
        masks = Cosentino19(sparsity=asked)._counts(net, asked)
        assert masks["3.weight"] == pytest.approx(10_000 * head, abs=1)
        # The others pay for it, all alike, so that the whole is what was asked.
        assert sum(masks.values()) == kept_count(90_000, asked) < kept
        assert masks["0.weight"] / 60_000 == pytest.approx(masks["2.weight"] / 20_000, abs=1e-4)


def test_nothing_happens_within_a_round() -> None:
    method, net = Cosentino19(sparsity=0.8, rounds=ROUNDS), make_net()
    state = started(method, net)
    happened = [
        step
        for step in range(1, 101)
        if method.update(net, state, Progress(step, 100, 5), TASK) is not None
    ]
    assert happened == [25, 50, 75, 100]


def test_each_round_trains_from_the_start_and_ends_there() -> None:
    method, net, memory = Cosentino19(sparsity=0.8, rounds=ROUNDS), make_net(), Memory(every=1)
    start = snapshot(net)
    trained = fit(net, IMAGES, TASK, SCHEDULE, memory, method)
    assert [(row["prune"], row["rewind"]) for row in trained.history] == [(1, 1)] * ROUNDS
    for step, (_, tensors, _) in memory.saves.items():
        saved = {
            key.removeprefix("net/").replace("parametrizations.weight.original", "weight"): value
            for key, value in tensors.items()
            if key.startswith("net/") and not key.endswith("mask")
        }
        assert same(saved, start) == (step % 3 == 0)
        assert torch.equal(tensors["method/cuts"], torch.tensor(step // 3))
        # The momentum of the last round is not that of the next.
        momentum = [key for key in tensors if "momentum_buffer" in key]
        assert bool(momentum) == (step % 3 != 0)
    assert same(method.finish(net, trained.state, TASK), current_masks(net))
    with bare(net):
        assert same(snapshot(net), start)


def test_what_went_stays_away_through_all_rounds() -> None:
    memory = Memory(every=1)
    method = Cosentino19(sparsity=0.8, rounds=ROUNDS)
    fit(make_net(), IMAGES, TASK, SCHEDULE, memory, method)

    def masks(step: int) -> list[Tensor]:
        tensors = memory.saves[step][1]
        return [tensors[key] for key in sorted(tensors) if key.endswith(".mask")]

    assert all(mask.all() for mask in masks(1))
    for step, then in pairwise(sorted(memory.saves)):
        assert not any((b & ~a).any() for a, b in zip(masks(step), masks(then), strict=True))


def test_the_rate_starts_again_in_each_round() -> None:
    method = Cosentino19(rounds=ROUNDS)
    fractions = [(step + 0.5) / 12 for step in range(12)]
    expected = [1 / 6, 1 / 2, 5 / 6] * ROUNDS
    assert [method.pace(fraction) for fraction in fractions] == pytest.approx(expected)


def test_without_a_single_step_the_start_itself_is_cut() -> None:
    method, net = Cosentino19(sparsity=0.8), make_net()
    start = snapshot(net)
    state = started(method, net)
    masks = method.finish(net, state, TASK)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, 0.8)
    with bare(net):
        assert same(snapshot(net), start)


def test_a_budget_that_no_layer_can_meet_is_refused_before_the_run() -> None:
    net, before = make_net(), snapshot(make_net())
    with pytest.raises(Refused, match="lower the sparsity"):
        started(Cosentino19(sparsity=0.999), net)
    assert same(snapshot(net), before) and not list(maskings(net))


def test_rounds_are_as_long_as_the_papers_and_so_is_the_last_training() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "cosentino19"}, environment={})
    assert (recipe.standard.epochs, recipe.adversarial.epochs) == (0, 0)
    # 50,000 steps of 60 images are sixty epochs of 50,000 images.
    assert recipe.prune.epochs == 60 * Cosentino19().rounds
    assert recipe.finetune.epochs == 60
    assert recipe.finetune.lr == recipe.prune.lr
