"""Flying Bird: IGQ from the first step, its calendar, its cosine, and counts that return."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import flyingbird as oracle
from oracles import rewiring as by_hand
from safetensors.torch import load, save
from torch import Tensor, nn
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.allocate import allocate
from advprune.errors import Refused
from advprune.events import Event
from advprune.masking import current_masks, prunable_weights
from advprune.method import Optimisation, Progress, State
from advprune.methods.flyingbird import FlyingBird
from advprune.rewiring import rewirings
from advprune.train import Schedule, fit

IMAGES = make_images(train=24, val=9)
TASK = make_task(steps=1)
ASKED = allocate("igq", prunable_weights(make_net()), 0.75)


def bird(**options: Any) -> FlyingBird:
    return FlyingBird(sparsity=0.75, **options)


def started(method: FlyingBird, net: nn.Module, seed: int = 0) -> State:
    return method.start(net, make_task(seed), Optimisation(0.1, 5e-4, steps=100))


def jolt(net: nn.Module) -> None:
    """What training might do to the weights that are on."""
    draw = generator(3)
    for _, weight, rewiring in rewirings(net):
        weight.data += 0.3 * torch.randn(weight.shape, generator=draw) * rewiring.mask


def counts(net: nn.Module) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in current_masks(net).items()}


# The start


def test_it_is_sparse_at_once_with_counts_by_igq() -> None:
    net = make_net()
    started(bird(), net)
    assert counts(net) == ASKED
    assert len(set(ASKED.values())) > 1
    for _, weight, rewiring in rewirings(net):
        assert torch.equal(weight != 0, rewiring.mask)


def test_which_weights_is_drawn_by_the_seed() -> None:
    masks = []
    for seed in (0, 0, 1):
        net = make_net()
        started(bird(), net, seed)
        masks.append(current_masks(net))
    assert same(masks[0], masks[1])
    assert not same(masks[0], masks[2])


# The calendar


@pytest.mark.parametrize(
    ("steps", "early", "late", "until"),
    [(78_200, 900, 1200, 1.0), (78_200, 900, 1200, 0.7), (240, 3, 4, 1.0), (6, 1, 1, 1.0)],
)
def test_it_rewires_when_the_released_code_does(
    steps: int, early: int, late: int, until: float
) -> None:
    method, net = bird(until=until), nn.Module()
    expected = oracle.moments(steps, early, late, until)
    assert [step for step in range(steps + 1) if method._due(step, steps)] == expected
    assert method.update(net, {}, Progress(steps, steps, 391), TASK) is None


def test_the_last_rewiring_freezes_and_the_last_step_is_none() -> None:
    net, method = make_net(), bird(period=0.1)
    state = started(method, net)
    events = {s: method.update(net, state, Progress(s, 100, 10), TASK) for s in range(1, 101)}
    happened = {step: event for step, event in events.items() if event}
    # Every tenth step, then every thirteenth.
    assert list(happened) == [10, 20, 30, 40, 50, 52, 65, 78, 91]
    assert happened.pop(91) == Event.REWIRE | Event.FREEZE
    assert set(happened.values()) == {Event.REWIRE}


# A rewiring


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("step", [10, 40, 91])
def test_the_smallest_of_each_layer_go_and_as_many_come(growth: Any, step: int) -> None:
    net, method = make_net().eval(), bird(growth=growth, period=0.1)
    state = started(method, net)
    jolt(net)
    method.loss(net, state, make_batch(), TASK).value.backward()
    before, weights = current_masks(net), {n: w.detach().clone() for n, w, _ in rewirings(net)}
    slopes = {name: it._seen for name, _, it in rewirings(net)}
    assert method.update(net, state, Progress(step, 100, 10), TASK)
    assert counts(net) == ASKED
    for name, mask in current_masks(net).items():
        kept, size = ASKED[name], mask.numel()
        drop = min(math.ceil(oracle.share(step, 100) * kept), kept - 1, size - kept)
        left = by_hand.drop(weights[name].numpy(), before[name].numpy(), drop)
        assert np.array_equal((before[name] & mask).numpy(), left)
        if growth == "gradient":
            slope: Tensor = slopes[name].abs()  # pyright: ignore
            grown = by_hand.grow(left, slope.numpy(), drop, before[name].numpy())
            assert np.array_equal(mask.numpy(), grown)
        assert drop > 0


def test_random_growth_does_not_look_at_the_gradient_and_changes_with_the_step() -> None:
    masks = []
    for step, seed in ((10, 5), (10, 6), (20, 5)):
        net, method = make_net(), bird(period=0.1)
        state = started(method, net)
        method.loss(net, state, make_batch(seed=seed), TASK).value.backward()
        method.update(net, state, Progress(step, 100, 10), TASK)
        masks.append(current_masks(net))
    assert same(masks[0], masks[1])
    assert not same(masks[0], masks[2])


# Flying Bird+

WORSE = [0.0, 0.1, 0.2, 0.1, 0.0]  # half of the changes are up
BETTER = [0.4, 0.3, 0.2, 0.1, 0.2]


@pytest.mark.parametrize(
    ("gaps", "errors", "shrinks", "grows"),
    [
        (BETTER, BETTER, 0, 0),
        (WORSE, BETTER, 1, 0),
        (BETTER, WORSE, 0, 1),
        ([0.3] * 5, [0.3] * 5, 0, 1),  # a gap that stays did not rise, an error did not fall
        (WORSE, WORSE, 1, 1),
        ([math.nan] * 3 + [0.0, 0.1], [math.nan] * 5, 0, 0),
    ],
)
def test_counts_follow_the_gap_and_the_error(
    gaps: list[float], errors: list[float], shrinks: int, grows: int
) -> None:
    net, method = make_net(), bird(plus=True, period=0.1)
    state = started(method, net)
    state["gaps"].copy_(torch.tensor(gaps))
    state["errors"].copy_(torch.tensor(errors))
    for step in (40, 52):  # before half of the search nothing follows anything
        method.update(net, state, Progress(step, 100, 10), TASK)
        p = oracle.share(step, 100)
        expected = {
            name: kept
            - (step > 50) * (shrinks * int(0.4 * p * kept) - grows * int(0.05 * p * kept))
            for name, kept in ASKED.items()
        }
        assert counts(net) == expected


def test_the_counts_are_back_in_equal_parts_at_the_last_rewiring() -> None:
    net, method = make_net(), bird(plus=True, period=0.1)
    state = started(method, net)
    state["gaps"].copy_(torch.arange(5.0))
    state["errors"].copy_(-torch.arange(5.0))
    totals = {}
    for step in range(1, 101):
        if method.update(net, state, Progress(step, 100, 10), TASK):
            totals[step] = sum(counts(net).values())
    assert totals[40] == 401 > totals[50] > totals[52] > totals[65]
    assert totals[78] == pytest.approx((totals[65] + 401) / 2, abs=2)
    assert counts(net) == ASKED


def test_what_was_measured_moves_along() -> None:
    method = bird(plus=True)
    state = started(method, make_net())
    for epoch in range(1, 7):
        method.measured(state, {"epoch": epoch, "train": 0.9, "val_robust": epoch / 10})
    np.testing.assert_allclose(state["errors"], [0.8, 0.7, 0.6, 0.5, 0.4])
    np.testing.assert_allclose(state["gaps"], [0.7, 0.6, 0.5, 0.4, 0.3])


def test_plus_asks_for_robust_accuracy_after_every_epoch() -> None:
    schedule = Schedule(epochs=2, batch_size=12, validate_every=2)
    with pytest.raises(Refused, match=r"epoch 1 has no robust accuracy .* prune\.validate_every=1"):
        fit(make_net(), IMAGES, TASK, schedule, Memory(), bird(plus=True))
    assert fit(make_net(), IMAGES, TASK, schedule, Memory(), bird()).history


def test_plus_resumes_after_any_step_in_the_same_bits() -> None:
    schedule = Schedule(epochs=8, batch_size=12, lr=0.1)
    net, memory, method = make_net(), Memory(every=1), bird(plus=True)
    trained = fit(net, IMAGES, TASK, schedule, memory, method)
    assert counts(net) == ASKED
    for step, tensors, history in list(memory.saves.values())[::3]:
        resumed, again = make_net(), Memory((step, load(save(tensors)), history))
        ended = fit(resumed, IMAGES, TASK, schedule, again, method)
        assert same(snapshot(resumed), snapshot(net)), step
        assert same(ended.state, trained.state)
