"""HARP: L_hw or the budget brings the densities down, and the end lands on the target."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toy import Memory, make_batch, make_images, make_net, make_task, same

from advprune.errors import Refused
from advprune.masking import current_masks, prunable_weights
from advprune.masks import kept_count, sparsity_of
from advprune.method import Optimisation, Progress, State
from advprune.methods.harp import Harp
from advprune.rates import rate_of, rated
from advprune.train import Schedule, fit

IMAGES = make_images()
TASK = make_task(steps=1)
SIZES = {name: weight.numel() for name, weight in prunable_weights(make_net()).items()}
TOTAL = sum(SIZES.values())
GAMMA = {"annealing": "gamma", "start_density": 0.4, "gamma": 0.01, "rate_lr": 1.0}
BUDGET = {"annealing": "budget", "start_density": 0.6, "ramp": 0.5, "rate_lr": 0.5}


def harp(sparsity: float = 0.9, **options) -> Harp:
    return Harp(sparsity=sparsity, **options)


def started(method: Harp, steps: int = 12) -> tuple[nn.Module, State]:
    net = make_net()
    return net, method.start(net, TASK, Optimisation(0.1, 5e-4, steps))


def densities(net: nn.Module) -> dict[str, float]:
    return {name: float(masking.density().detach()) for name, masking in rated(net).items()}


def spent(net: nn.Module) -> float:
    """Weights that the densities stand for, in float64."""
    rates = torch.stack([masking.rate.detach().double() for masking in rated(net).values()])
    floors = torch.tensor([masking.floor for masking in rated(net).values()], dtype=torch.float64)
    sizes = torch.tensor(list(SIZES.values()), dtype=torch.float64)
    return float((sizes * ((1 - floors) / (1 + torch.exp(-rates)) + floors)).sum())


def set_density(net: nn.Module, density: float) -> None:
    for masking in rated(net).values():
        masking.rate.data.fill_(rate_of(density, masking.floor))


def test_the_loss_is_the_robust_loss_and_gamma_times_l_hw() -> None:
    def robust(method: Harp) -> float:
        net, _ = started(method)
        return float(TASK.objective(net, make_batch()).value.detach())

    method = harp(0.9, **GAMMA)
    net, state = started(method)
    state["gamma"].fill_(3.0)
    overrun = spent(net) / (0.1 * TOTAL) - 1
    assert overrun > 1
    got = float(method.loss(net, state, make_batch(), TASK).value.detach())
    assert got == pytest.approx(robust(method) + 3.0 * overrun, rel=1e-5)
    # Where the budget itself is annealed, nothing is added.
    method = harp(0.9, **BUDGET)
    net, state = started(method)
    got = float(method.loss(net, state, make_batch(), TASK).value.detach())
    assert got == robust(method)


def test_gamma_grows_by_the_epoch_until_one_ends_on_target_and_never_again() -> None:
    method = harp(0.9, **GAMMA)
    net, state = started(method, steps=18)

    def gamma_after(first: int, last: int) -> list[float]:
        values = []
        for step in range(first, last + 1):
            method.update(net, state, Progress(step, 18, 3), TASK)
            values.append(round(float(state["gamma"]), 6))
        return values

    assert float(state["gamma"]) == pytest.approx(0.01)
    assert gamma_after(1, 6) == [0.01, 0.01, 0.02, 0.02, 0.02, 0.03]
    set_density(net, 0.05)
    assert gamma_after(7, 8) == [0.03, 0.03]
    # On target within an epoch, but not at its end: it goes on growing.
    set_density(net, 0.3)
    assert gamma_after(9, 9) == [0.04]
    assert not state["frozen"]
    set_density(net, 0.1 - 1e-6)
    assert gamma_after(10, 12) == [0.04, 0.04, 0.04]
    assert state["frozen"]
    set_density(net, 0.3)
    assert gamma_after(13, 18) == [0.04] * 6


def test_on_target_means_to_four_decimals() -> None:
    method = harp(0.9, **GAMMA)
    for excess, frozen in [(4e-5, True), (6e-5, False)]:
        net, state = started(method)
        set_density(net, 0.1 * (1 + excess))
        method.update(net, state, Progress(3, 12, 3), TASK)
        assert bool(state["frozen"]) is frozen


def test_after_an_update_the_densities_are_within_the_budget_and_the_masks_follow_them() -> None:
    method = harp(0.9, **BUDGET)
    net, state = started(method, steps=20)
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 21):
        for masking in rated(net).values():  # What learning might do to the rates.
            masking.rate.data += torch.randn((), generator=draw)
        before, progress = densities(net), Progress(step, 20, 5)
        under = spent(net) < method.schedule(20).budget(progress.fraction) * TOTAL
        method.update(net, state, progress, TASK)
        assert spent(net) <= method.schedule(20).budget(progress.fraction) * TOTAL * (1 + 1e-5)
        if under:
            assert densities(net) == before  # Room is left to the rates, not filled.
        for name, mask in current_masks(net).items():
            assert 0 <= int(mask.sum()) - densities(net)[name] * SIZES[name] < 1 + 1e-3


def test_shifting_keeps_the_differences_between_rates() -> None:
    method = harp(0.9, **BUDGET)
    net, state = started(method)
    before = [float(masking.rate.detach()) for masking in rated(net).values()]
    method.update(net, state, Progress(12, 12, 3), TASK)
    after = [float(masking.rate.detach()) for masking in rated(net).values()]
    moved = np.array(after) - before
    assert moved == pytest.approx(np.full(len(moved), moved[0]), abs=1e-5)
    assert moved[0] < -1


@pytest.mark.parametrize("allocation", ["erk", "uniform", "lamp"])
def test_the_search_starts_where_it_was_told_or_at_the_target_if_that_is_denser(
    allocation: str,
) -> None:
    for sparsity, density in [(0.9, 0.4), (0.3, 0.7)]:
        net, _ = started(harp(sparsity, **GAMMA | {"start_allocation": allocation}))
        kept = sum(int(mask.sum()) for mask in current_masks(net).values())
        assert kept == kept_count(TOTAL, 1 - density)
        for name, mask in current_masks(net).items():
            expected = min(int(mask.sum()) / SIZES[name], 0.99)
            assert densities(net)[name] == pytest.approx(expected, rel=1e-5)


def test_no_layer_starts_below_the_floor() -> None:
    # At a floor of nearly the target itself, ERK would give the large layers less.
    method = harp(0.5, **GAMMA | {"floor": 0.999, "start_density": 0.5})
    net, _ = started(method)
    got = densities(net)
    assert min(int(m.sum()) / SIZES[n] for n, m in current_masks(net).items()) < method.least
    assert method.least == pytest.approx(0.4995)
    assert all(density > method.least for density in got.values())


@pytest.mark.parametrize("options", [GAMMA | {"gamma": 20.0}, BUDGET])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_the_search_ends_on_the_exact_count_and_above_the_floor(
    options: dict, sparsity: float
) -> None:
    method = harp(sparsity, **options)
    net = make_net()
    schedule = Schedule(epochs=6, batch_size=14, lr=0.5, validate_every=0)
    trained = fit(net, IMAGES, TASK, schedule, Memory(), method)
    masks = method.finish(net, trained.state, TASK)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(TOTAL, sparsity)
    assert 1 - sparsity_of(masks) == pytest.approx(1 - sparsity, abs=1 / TOTAL)
    assert spent(net) == pytest.approx((1 - sparsity) * TOTAL, rel=1e-4)
    for name, density in densities(net).items():
        assert density >= method.least * (1 - 1e-6)
        assert abs(int(masks[name].sum()) - density * SIZES[name]) <= 1 + 1e-3
    assert same(current_masks(net), masks)


def test_rates_learn_which_layers_matter() -> None:
    """Starting uniform, training must tell layers apart by more than the shift that all share."""
    method = harp(0.8, **BUDGET | {"start_allocation": "uniform"})
    net = make_net()
    schedule = Schedule(epochs=6, batch_size=14, lr=0.5, validate_every=0)
    fit(net, IMAGES, TASK, schedule, Memory(), method)
    got = densities(net).values()
    assert max(got) > 1.2 * min(got)


@pytest.mark.parametrize("learn", ["both", "rates"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_resumed_search_goes_on_with_the_gamma_it_had(epoch: int, learn: str) -> None:
    method = harp(0.8, **GAMMA | {"gamma": 20.0, "start_density": 0.5, "learn": learn})
    schedule = Schedule(epochs=4, batch_size=14, lr=0.5, validate_every=0)
    whole, memory, resumed = make_net(), Memory(), make_net()
    expected = fit(whole, IMAGES, TASK, schedule, memory, method).state
    # The frozen gamma is not the one that the start would set.
    assert expected["frozen"] and expected["gamma"] > expected["growth"]
    got = fit(resumed, IMAGES, TASK, schedule, Memory(memory.saves[3 * epoch]), method).state
    assert same(got, expected)
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_gamma_that_is_far_too_small_is_refused_at_the_end() -> None:
    method = harp(0.9, **GAMMA | {"gamma": 1e-9, "rate_lr": 1e-3})
    net = make_net()
    trained = fit(net, IMAGES, TASK, Schedule(epochs=2, batch_size=14), Memory(), method)
    with pytest.raises(
        Refused, match=r"ended at \d\.\d\d times the target.*raise --gamma"
    ) as error:
        method.finish(net, trained.state, TASK)
    assert "\n" not in str(error.value)


def test_without_any_training_the_search_is_refused_rather_than_guessed() -> None:
    method = harp(0.9, **GAMMA)
    net, state = started(method)
    with pytest.raises(Refused, match=r"ended at 3\.9\d times"):
        method.finish(net, state, TASK)


def test_rates_have_a_rate_and_a_decay_of_their_own() -> None:
    method = harp(0.9, **GAMMA | {"rate_lr": 0.25, "rate_weight_decay": 0.125})
    net, _ = started(method)
    rest, rates = method.groups(net, Optimisation(0.2, 5e-4, 12))
    assert rates["lr"] == pytest.approx(0.05)
    assert rates["weight_decay"] == 0.125
    assert {id(p) for p in rates["params"]} == {id(m.rate) for m in rated(net).values()}
    assert "lr" not in rest and "weight_decay" not in rest
    everything = {id(p) for p in net.parameters() if p.requires_grad}
    both = [id(p) for group in (rest, rates) for p in group["params"]]
    assert len(both) == len(set(both))
    assert set(both) == everything


@pytest.mark.parametrize(
    "option",
    [
        ("gamma", 0.0),
        ("floor", 0.0),
        ("floor", 1.0),
        ("ramp", 0.0),
        ("ramp", 1.1),
        ("start_density", 0.0),
        ("start_density", 1.1),
        ("rate_lr", 0.0),
        ("rate_weight_decay", -1e-4),
        ("annealing", "both"),
        ("learn", "none"),
        ("start_allocation", "global"),
    ],
)
def test_options_outside_their_ranges_are_refused(option: tuple[str, Any]) -> None:
    name, value = option
    with pytest.raises(ValidationError, match=name):
        harp(**{name: value})
