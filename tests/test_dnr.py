"""DNR: a hybrid loss, a penalty that follows the next drop, layers paid by their momentum."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import dnr as oracle
from oracles import rewiring as by_hand
from torch import Tensor, nn
from toy import Memory, generator, make_batch, make_images, make_net, make_task

from advprune.allocate import allocate
from advprune.events import Event
from advprune.masking import bake, current_masks, prunable_weights
from advprune.method import Optimisation, Progress, State
from advprune.methods.dnr import Dnr, flooded
from advprune.rewiring import rewirings
from advprune.train import Schedule, fit

TASK = make_task(steps=1)
EPOCH, STEPS = 10, 100


def started(method: Dnr, net: nn.Module) -> State:
    return method.start(net, TASK, Optimisation(0.1, 5e-4, steps=STEPS))


def jolt(net: nn.Module, state: State, seed: int = 3) -> None:
    """What training might do to weights and momentum."""
    draw = generator(seed)
    for name, weight, rewiring in rewirings(net):
        weight.data += 0.3 * torch.randn(weight.shape, generator=draw) * rewiring.mask
        state[f"M/{name}"].copy_(torch.randn(weight.shape, generator=draw))


def arrays(state: State, kind: str) -> dict[str, np.ndarray]:
    return {k[2:]: v.double().numpy().copy() for k, v in state.items() if k.startswith(kind + "/")}


def weights_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: w.detach().double().numpy().copy() for name, w, _ in rewirings(net)}


def masks_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: mask.numpy() for name, mask in current_masks(net).items()}


# The loss


@pytest.mark.parametrize("clean", [0.0, 0.3, 1.0])
def test_the_loss_is_clean_and_robust_and_the_penalty(clean: float) -> None:
    net, method = make_net().eval(), Dnr(sparsity=0.7, clean=clean, rho=0.5)
    state = started(method, net)
    jolt(net, state)
    plain, batch = bake(net, make_net()).eval(), make_batch()
    robust = TASK.objective(plain, batch)
    expected = clean * F.cross_entropy(plain(batch.images), batch.labels)
    expected = (expected + (1 - clean) * robust.value).item()
    expected += oracle.penalty(weights_of(net), arrays(state, "Z"), arrays(state, "U"), 0.5)
    loss = method.loss(net, state, make_batch(), TASK)
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(loss.correct, robust.correct)


def test_the_penalty_pulls_what_would_go_next_to_zero() -> None:
    net, method = make_net(), Dnr(sparsity=0.7, rho=2.0)
    state = started(method, net)
    method.penalty(net, state).backward()
    for _, weight, rewiring in rewirings(net):
        kept = int(rewiring.mask.sum())
        drop = math.ceil(0.5 * kept)
        stays = by_hand.drop(weight.detach().numpy(), rewiring.mask.numpy(), drop)
        # Z is W where it stays and zero else, U = W - Z: the gradient is 2 rho (W - Z).
        expected = np.where(stays, 0.0, 4.0 * weight.detach().numpy())
        gradient: Tensor = weight.grad  # pyright: ignore
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-7)
        assert not rewiring.take().any()  # and the momentum does not see it


def test_rho_follows_the_length_of_the_run() -> None:
    state = started(Dnr(), make_net())
    assert float(state["rho"]) == pytest.approx(0.782 / (0.1 * STEPS))


# The momentum


def test_the_momentum_is_of_all_weights_at_every_step() -> None:
    net, method = make_net().eval(), Dnr(sparsity=0.7, rho=1e-9)
    state = started(method, net)
    expected = {name: np.zeros(m.shape) for name, m in arrays(state, "M").items()}
    for step in (1, 2, 3):
        plain = bake(net, make_net()).eval()
        batch = make_batch(seed=step)
        loss = 0.5 * F.cross_entropy(plain(batch.images), batch.labels)
        (loss + 0.5 * TASK.objective(plain, batch).value).backward()
        method.loss(net, state, make_batch(seed=step), TASK).value.backward()
        assert method.update(net, state, Progress(step, STEPS, EPOCH), TASK) is None
        for name in expected:
            slope: Tensor = plain.get_parameter(name).grad  # pyright: ignore
            expected[name] = 0.9 * expected[name] + slope.double().numpy()
    for name, momentum in arrays(state, "M").items():
        np.testing.assert_allclose(momentum, expected[name], rtol=1e-3, atol=1e-6)
        assert momentum[~masks_of(net)[name]].any()


# The rewiring


@pytest.mark.parametrize("step", [10, 50, 90])
def test_layers_get_weights_by_momentum_and_grow_them_where_it_is_largest(step: int) -> None:
    net, method = make_net(), Dnr(sparsity=0.8)
    state = started(method, net)
    jolt(net, state)
    before, weights, momenta = masks_of(net), weights_of(net), arrays(state, "M")
    momenta = {name: 0.9 * momentum for name, momentum in momenta.items()}
    dual = arrays(state, "U")
    event = method.update(net, state, Progress(step, STEPS, EPOCH), TASK)
    assert event == (Event.REWIRE | Event.FREEZE if step == 90 else Event.REWIRE)
    share = 0.25 * (1 + math.cos(math.pi * step / STEPS))
    drops = {n: min(math.ceil(share * m.sum()), int(m.sum()) - 1) for n, m in before.items()}
    total, parts, after = sum(drops.values()), oracle.shares(momenta, before), masks_of(net)
    coming = 0.25 * (1 + math.cos(math.pi * (step + EPOCH) / STEPS))
    for name, mask in after.items():
        left = by_hand.drop(weights[name], before[name], drops[name])
        count = int(mask.sum()) - int(left.sum())
        assert count == pytest.approx(total * parts[name], abs=1)
        expected = by_hand.grow(left, np.abs(momenta[name]), count, before[name])
        assert np.array_equal(mask, expected)
        kept = int(mask.sum())
        z, u = oracle.aim(
            weights_of(net)[name],
            mask,
            np.where(before[name] & mask, dual[name], 0.0),
            min(math.ceil(coming * kept - 1e-9), kept - 1),
        )
        np.testing.assert_allclose(arrays(state, "Z")[name], z, atol=1e-6)
        np.testing.assert_allclose(arrays(state, "U")[name], u, atol=1e-6)
    assert sum(m.sum() for m in after.values()) == sum(m.sum() for m in before.values())


def test_it_rewires_after_epochs_but_the_last() -> None:
    net, method = make_net(), Dnr(sparsity=0.8)
    images, schedule = make_images(train=24, val=9), Schedule(epochs=4, batch_size=12)
    first = allocate("uniform", prunable_weights(make_net()), 0.8)
    history = fit(net, images, TASK, schedule, Memory(), method).history
    assert [row.get("rewire") for row in history] == [1, 1, 1, None]
    assert [row.get("freeze") for row in history] == [None, None, 1, None]
    kept = {name: int(mask.sum()) for name, mask in current_masks(net).items()}
    assert kept != first and sum(kept.values()) == sum(first.values())


def test_what_a_layer_has_no_room_for_goes_to_the_others_in_proportion() -> None:
    rooms = {"a": 10, "b": 100, "c": 100}
    assert flooded({"a": 1.0, "b": 1.0, "c": 2.0}, rooms, 40) == {"a": 10, "b": 10, "c": 20}
    assert flooded({"a": 2.0, "b": 1.0, "c": 1.0}, rooms, 40) == {"a": 10, "b": 15, "c": 15}
    assert flooded({"a": 9.0, "b": 0.0, "c": 0.0}, rooms, 40) == {"a": 10, "b": 15, "c": 15}
    assert flooded({"a": 1.0, "b": 1.0, "c": 1.0}, rooms, 210) == {"a": 10, "b": 100, "c": 100}
