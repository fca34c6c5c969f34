"""Robust Bird: a cheap training that stops once its mask is stable, and a cut for good."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import tickets as oracle
from oracles.ranking import largest
from torch import Tensor, nn
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.events import Event
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State
from advprune.methods.robustbird import RobustBird, distances
from advprune.objectives import Loss
from advprune.train import Schedule, fit
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=1)
STEPS = 3  # in an epoch


def started(method: RobustBird, net: nn.Module) -> State:
    return method.start(net, TASK, Optimisation(0.1, 5e-4, steps=100))


def ends(method: RobustBird, net: nn.Module, state: State, epoch: int) -> Event | None:
    return method.update(net, state, Progress(STEPS * epoch, 100 * STEPS, STEPS), TASK)


def mask_of(net: nn.Module, sparsity: float) -> np.ndarray:
    arrays = {name: abs(weight.numpy()) for name, weight in prunable_weights(net).items()}
    total = sum(array.size for array in arrays.values())
    kept = largest(arrays, kept_count(total, sparsity))
    return np.concatenate([mask.ravel() for mask in kept.values()])


# When it stops


def test_weights_that_do_not_move_are_stable_after_five_epochs_and_not_before() -> None:
    net, method = make_net(), RobustBird(sparsity=0.8)
    state = started(method, net)
    assert [ends(method, net, state, epoch) for epoch in range(1, 5)] == [None] * 4
    assert ends(method, net, state, 5) == Event.STOP


def test_only_the_end_of_an_epoch_counts() -> None:
    net, method = make_net(), RobustBird(sparsity=0.8)
    state = started(method, net)
    before = {key: value.clone() for key, value in state.items()}
    for step in (1, 2, 4, 5):
        assert method.update(net, state, Progress(step, 90, STEPS), TASK) is None
    assert same(state, before)


@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_rule_is_that_of_the_last_mask_against_those_before_it(window: int, seed: int) -> None:
    """Weights that move less and less, from epoch to epoch."""
    net, draw = make_net(), generator(seed)
    method = RobustBird(sparsity=0.7, window=window, threshold=0.08)
    state = started(method, net)
    history, stopped = [], None
    for epoch in range(1, 25):
        for weight in prunable_weights(net).values():
            weight.add_(0.3 * 0.7**epoch * torch.randn(weight.shape, generator=draw))
        history.append(mask_of(net, 0.7))
        if ends(method, net, state, epoch) is not None:
            stopped = epoch
            break
    assert stopped == oracle.stable_after(history, window, 0.08)
    assert stopped is not None and stopped > window


def test_the_distance_is_the_share_of_all_weights_that_differ_and_eight_percent_are_near() -> None:
    mask = torch.zeros(100, dtype=torch.bool)
    others = torch.zeros(3, 100, dtype=torch.bool)
    others[1, :8], others[2, :9] = True, True
    assert distances(others, mask).tolist() == [0.0, 0.08, 0.09]
    assert (distances(others, mask) <= RobustBird().threshold).tolist() == [True, True, False]


def test_where_few_weights_stay_any_masks_are_near() -> None:
    for sparsity, stopped in ((0.97, 5), (0.5, None)):
        net, draw = make_net(), generator(1)
        method = RobustBird(sparsity=sparsity)
        state = started(method, net)
        for epoch in range(1, 9):
            for weight in prunable_weights(net).values():
                weight.copy_(torch.randn(weight.shape, generator=draw))
            if ends(method, net, state, epoch) is not None:
                break
        else:
            epoch = None
        assert epoch == stopped


def test_the_search_ends_after_the_epoch_that_is_stable() -> None:
    schedule = Schedule(epochs=9, batch_size=14, lr=1e-5, validate_every=0)
    net = make_net()
    trained = fit(net, IMAGES, TASK, schedule, Memory(), RobustBird(sparsity=0.8))
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4, 5]
    assert [row.get("stop") for row in trained.history] == [None] * 4 + [1]


def test_a_mask_that_is_never_stable_is_cut_at_the_end_all_the_same() -> None:
    schedule = Schedule(epochs=6, batch_size=14, lr=1.0, validate_every=0)
    method, net = RobustBird(sparsity=0.5, threshold=0.0), make_net()
    trained = fit(net, IMAGES, TASK, schedule, Memory(), method)
    assert len(trained.history) == 6
    check_cut(method, net, trained.state, 0.5)


# The cut


def check_cut(method: RobustBird, net: nn.Module, state: State, sparsity: float) -> None:
    weights, expected = snapshot(net), mask_of(net, sparsity)
    masks = method.finish(net, state, TASK)
    assert np.array_equal(torch.cat([m.flatten() for m in masks.values()]).numpy(), expected)
    assert same(snapshot(net), weights)  # nothing goes back


def test_the_weights_are_cut_as_they_are() -> None:
    schedule = Schedule(epochs=2, batch_size=14, lr=0.1, validate_every=0)
    method, net = RobustBird(sparsity=0.6), make_net()
    trained = fit(net, IMAGES, TASK, schedule, Memory(), method)
    check_cut(method, net, trained.state, 0.6)


# What it trains on


@pytest.mark.parametrize(
    ("training", "name"), [("natural",) * 2, ("fgsm-rs",) * 2, ("robust", "trades")]
)
def test_the_search_minimises_what_it_is_told_to(training: Any, name: str) -> None:
    task = make_task(name="trades")
    method = RobustBird(training=training)

    def value(loss: Loss) -> Tensor:
        return loss.value

    first = value(method.loss(make_net(), {}, make_batch(), task))
    then = value(make_task(name=name).objective(make_net(), make_batch()))
    assert torch.equal(first, then)


def test_the_paper_searches_naturally_and_then_trains_for_200_epochs() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "robustbird"}, environment={})
    assert (recipe.standard.epochs, recipe.adversarial.epochs) == (0, 0)
    for stage in (recipe.prune, recipe.finetune):
        assert (stage.epochs, stage.lr, stage.weight_decay) == (200, 0.1, 5e-4)
    method = RobustBird()
    assert (method.training, method.window, method.threshold) == ("natural", 5, 0.08)
