"""R-ADMM: projection, penalty and updates as in the paper, then a cut that removes little."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from oracles import radmm as oracle
from pydantic import ValidationError
from torch import Tensor, nn
from toy import Memory, generator, make_batch, make_images, make_net, make_task

from advprune.allocate import allocate
from advprune.errors import Refused
from advprune.masking import prunable_weights
from advprune.masks import keep_top, kept_count
from advprune.method import Optimisation, Progress, State
from advprune.methods.radmm import Radmm
from advprune.models import logits_layer, prunable
from advprune.train import Schedule, fit

IMAGES = make_images()
TASK = make_task(steps=1)
SHAPES = {name: weight.shape for name, weight in prunable_weights(make_net()).items()}
HEAD = logits_layer(make_net())
GRANULARITIES = ["weight", "column"]
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def radmm(sparsity: float = 0.75, **options: Any) -> Radmm:
    return Radmm(sparsity=sparsity, **options)


def started(method: Radmm, net: nn.Module | None = None, steps: int = 100) -> State:
    return method.start(net or make_net(), TASK, Optimisation(0.1, 5e-4, steps))


def units_of(shape: torch.Size, granularity: Any) -> int:
    spans = [axis for axis in oracle.SPANS[granularity] if axis < len(shape)]
    return int(np.prod([size for axis, size in enumerate(shape) if axis not in spans]))


def jolt(net: nn.Module, draw: torch.Generator) -> None:
    """What training might do to the weights."""
    for layer in prunable(net).values():
        layer.weight.data += 0.1 * torch.randn(layer.weight.shape, generator=draw)


# The projection


@every_granularity
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_projection_keeps_the_units_of_largest_norm(granularity: Any, sparsity: float) -> None:
    net = make_net()
    state = started(radmm(sparsity, granularity=granularity), net)
    for name, weight in prunable_weights(net).items():
        keep = int(state[f"kept/{name}"])
        expected = oracle.project(weight.numpy(), granularity, keep)
        assert np.array_equal(state[f"Z/{name}"].numpy(), expected)
        assert torch.equal(state[f"Z/{name}"], weight) == (sparsity == 0.0)


@every_granularity
def test_of_equal_units_the_first_are_kept(granularity: Any) -> None:
    conv = nn.Conv2d(6, 4, 2, bias=False)
    conv.weight.data = torch.ones(4, 6, 2, 2) * torch.tensor([1.0, -1.0]).repeat(3)[:, None, None]
    net = nn.Sequential(conv)
    state = started(radmm(0.5, granularity=granularity), net)
    weight, keep = conv.weight.detach().numpy(), int(state["kept/0.weight"])
    expected = oracle.project(weight, granularity, keep)
    assert np.array_equal(state["Z/0.weight"].numpy(), expected)
    assert 0 < int((state["Z/0.weight"] != 0).sum()) < 96


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_projecting_channels_zeroes_what_makes_and_what_reads_them(granularity: Any) -> None:
    net = make_net()
    method = radmm(0.5, granularity=granularity, min_channels=1, round_to=1)
    state = started(method, net)
    names = list(SHAPES)
    for maker, reader in pairwise(names):
        layer, axis = (maker, 0) if granularity == "filter" else (reader, 1)
        norms = prunable_weights(net)[layer].movedim(axis, 0).flatten(1).norm(dim=1)
        kept = torch.zeros_like(norms).bool()
        kept[norms.topk(len(norms) // 2).indices] = True
        assert torch.equal(state[f"Z/{maker}"].flatten(1).any(dim=1), kept)
        assert torch.equal(state[f"Z/{reader}"].transpose(0, 1).flatten(1).any(dim=1), kept)
    # And the penalty, the updates and the cut are those of single weights with such a Z.
    assert float(method.penalty(net, state).detach()) > 0
    jolt(net, generator(3))
    before = {name: state[f"U/{name}"].clone() for name in names}
    method.update(net, state, Progress(10, 10, 10), TASK)
    for name, weight in prunable_weights(net).items():
        expected = before[name] + weight - state[f"Z/{name}"]
        assert torch.equal(state[f"U/{name}"], expected)


def test_without_ties_it_is_the_released_percentile() -> None:
    state = started(radmm())
    for name, weight in prunable_weights(make_net()).items():
        expected = oracle.released_projection(weight.numpy(), 0.75)
        assert np.array_equal(state[f"Z/{name}"].numpy(), expected)


# The penalty


@pytest.mark.parametrize("dual", ["detached", "released"])
def test_the_gradient_grows_with_the_updates_only_as_released(dual: Any) -> None:
    """Detached it is rho (W - Z + U); the released U adds as many copies as there were updates."""
    net, draw = make_net(), generator(4)
    method = radmm(dual=dual, rho=0.5, rho_growth=1.0, updates=9)
    state = started(method, net, steps=10)
    seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in SHAPES}
    for step in range(4):
        weights = [layer.weight for layer in prunable(net).values()]
        gradients = torch.autograd.grad(method.penalty(net, state), weights)
        for name, weight, gradient in zip(SHAPES, weights, gradients, strict=True):
            w, z = weight.detach().clone(), state[f"Z/{name}"].clone()
            factor = step + 1 if dual == "released" else 1
            torch.testing.assert_close(gradient, factor * 0.5 * (w - z + state[f"U/{name}"]))
            seen[name].append((w, z, gradient))
        method.update(net, state, Progress(step + 1, 10, 10), TASK)
        # The oracle's next update finds the weights where this gradient was taken.
        jolt(net, draw)
    assert int(state["updates"]) == 4
    for steps in seen.values():
        weights, projected, gradients = zip(*steps, strict=True)
        expected = oracle.penalty_gradients(weights, projected, 0.5, detached=dual == "detached")
        torch.testing.assert_close(list(gradients), expected)


def test_the_loss_is_the_robust_loss_and_the_penalty() -> None:
    net, method = make_net().eval(), radmm(rho=2.0)
    state = started(method, net)
    robust = TASK.objective(net, make_batch())
    loss = method.loss(net, state, make_batch(), TASK)
    squares = 0.0
    for weight in prunable_weights(net).values():
        cut = weight.numpy() - oracle.project(weight.numpy(), "weight", weight.numel() // 4)
        squares += float((cut.astype(np.float64) ** 2).sum())
    added = float(loss.value.detach()) - float(robust.value.detach())
    assert added == pytest.approx(0.5 * 2.0 * squares, rel=1e-5)
    assert torch.equal(loss.correct, robust.correct)


def test_all_weights_train_and_z_and_u_do_not() -> None:
    net, method = make_net(), radmm()
    state = started(method, net)
    method.update(net, state, Progress(50, 100, 10), TASK)
    assert not any(value.requires_grad for value in state.values())
    (group,) = method.groups(net, Optimisation(0.1, 5e-4, 100))
    assert {id(p) for p in group["params"]} == {id(p) for p in net.parameters()}


# The updates


def test_z_is_projected_from_w_and_u_and_u_adds_up_what_is_left() -> None:
    net, draw = make_net(), generator(5)
    method = radmm(updates=4)
    state = started(method, net, steps=5)
    u = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    assert not any(bool(state[f"U/{name}"].any()) for name in SHAPES)
    for step in range(1, 5):
        jolt(net, draw)
        method.update(net, state, Progress(step, 5, 5), TASK)
        for name in SHAPES:
            w = prunable_weights(net)[name].numpy()
            z = oracle.project(w + u[name], "weight", SHAPES[name].numel() // 4)
            u[name] = u[name] + (w - z)
            assert np.allclose(state[f"Z/{name}"].numpy(), z, rtol=0, atol=1e-6)
            assert np.allclose(state[f"U/{name}"].numpy(), u[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("updates", "steps"), [(9, 200), (9, 10), (1, 7), (4, 33)])
def test_updates_are_spread_evenly_and_the_end_has_none(updates: int, steps: int) -> None:
    net, method = make_net(), radmm(updates=updates, rho=0.001)
    state = started(method, net, steps=steps)
    at, rhos = [], [float(state["rho"])]
    for step in range(1, steps + 1):
        before = int(state["updates"])
        method.update(net, state, Progress(step, steps, 10), TASK)
        if int(state["updates"]) > before:
            at.append(step)
            rhos.append(float(state["rho"]))
    # The first whole step at or after each k / (updates + 1) of the run.
    assert at == [-(-k * steps // (updates + 1)) for k in range(1, updates + 1)]
    assert at[-1] < steps
    assert rhos == pytest.approx([0.001 * 1.3**k for k in range(updates + 1)], rel=1e-5)


def test_rho_follows_the_length_of_the_run_unless_told() -> None:
    # The released run: 200 epochs of 391 steps at a rate of 0.01.
    released = radmm().start(make_net(), TASK, Optimisation(0.01, 2e-4, 200 * 391))
    assert float(released["rho"]) == pytest.approx(0.001, rel=1e-3)
    shorter = radmm().start(make_net(), TASK, Optimisation(0.1, 2e-4, 391))
    assert float(shorter["rho"]) == pytest.approx(0.02, rel=1e-3)
    assert float(started(radmm(rho=0.3))["rho"]) == pytest.approx(0.3)


def test_on_a_quadratic_the_weights_approach_the_sparse_set() -> None:
    """min 1/2 |W - T|^2 over sparse W, by hand: W goes to the projection of T."""
    net = nn.Linear(4, 3, bias=False)
    target = torch.tensor([[3.0, -0.2, 0.1, 2.0], [0.3, -2.5, 0.2, 0.1], [0.1, 0.2, -0.3, 0.25]])
    net.weight.data.copy_(target)
    method = radmm(rho=0.5, updates=30)
    state = started(method, net)
    keep = 3
    start = float((target - state["Z/weight"]).norm())
    for step in range(1, 1001):
        loss = 0.5 * (net.weight - target).square().sum() + method.penalty(net, state)
        (gradient,) = torch.autograd.grad(loss, net.weight)
        # A step no longer than the curvature allows, which grows with rho.
        net.weight.data -= gradient / (1 + float(state["rho"]))
        method.update(net, state, Progress(step, 1000, 10), TASK)
    w, z = net.weight.detach(), state["Z/weight"]
    assert float((w - z).norm()) < 0.02 * start
    expected = oracle.project(target.numpy(), "weight", keep)
    assert np.allclose(w.numpy(), expected, atol=0.02)
    mask = method.finish(net, state, TASK)["weight"]
    assert np.array_equal(mask.numpy(), expected != 0)


# The cut


@every_granularity
@pytest.mark.parametrize("head", ["pruned", "dense"])
def test_the_cut_keeps_the_exact_number_of_units(granularity: Any, head: Any) -> None:
    net, method = make_net(), radmm(0.4, granularity=granularity, head=head)
    state = started(method, net)
    jolt(net, generator(6))
    masks = method.finish(net, state, TASK)
    sizes = {name: units_of(shape, granularity) for name, shape in SHAPES.items()}
    kept = {n: int(m.sum()) * sizes[n] // m.numel() for n, m in masks.items()}
    assert sum(kept.values()) == kept_count(sum(sizes.values()), 0.4)
    whole = {HEAD} if head == "dense" else set()
    left = kept_count(sum(sizes.values()), 0.4) - sum(sizes[name] for name in whole)
    share = left / sum(size for name, size in sizes.items() if name not in whole)
    for name, mask in masks.items():
        wanted = sizes[name] if name in whole else share * sizes[name]
        assert abs(kept[name] - wanted) < 1
        # The weights decide as they are now, not as they were at the start.
        w = prunable_weights(net)[name].numpy()
        expected = oracle.project(w, granularity, kept[name])
        assert np.array_equal(np.where(mask.numpy(), w, 0), expected)


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])
def test_the_counts_are_the_allocation_s_and_fixed_at_the_start(allocation: Any) -> None:
    net, method = make_net(), radmm(0.8, allocation=allocation)
    expected = allocate(allocation, prunable_weights(net), 0.8)
    state = started(method, net)
    for layer in prunable(net).values():
        layer.weight.data *= torch.rand(layer.weight.shape, generator=generator(8))
    masks = method.finish(net, state, TASK)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == expected


@pytest.mark.parametrize("allocation", ["erk", "lamp"])
@pytest.mark.parametrize("granularity", ["column", "filter", "channel"])
def test_rules_that_count_weights_are_refused_for_groups(allocation: Any, granularity: Any) -> None:
    message = f"--allocation {allocation} counts weights, --granularity {granularity} does not"
    with pytest.raises(Refused, match=message):
        started(radmm(allocation=allocation, granularity=granularity))


def test_after_a_search_the_cut_removes_little() -> None:
    def removed(net: nn.Module) -> float:
        """The share of the weights' squares that cutting three quarters of each layer removes."""
        weights = prunable_weights(net).values()
        cuts = [w * ~keep_top(w.abs(), w.numel() // 4) for w in weights]
        return float(sum(c.square().sum() for c in cuts) / sum(w.square().sum() for w in weights))

    before, after = removed(make_net()), {}
    # Without momentum: a pull this strong would overshoot with it.
    schedule = Schedule(epochs=12, batch_size=14, lr=0.05, momentum=0.0, validate_every=0)
    for rho in (1e-6, 2.0):
        net = make_net()
        fit(net, IMAGES, TASK, schedule, Memory(), radmm(rho=rho, updates=5))
        after[rho] = removed(net)
    assert before > 0.2
    assert after[1e-6] > 0.9 * before  # not without the pull
    assert after[2.0] < 0.15 * before


OUTSIDE = {"rho": 0.0, "rho_growth": 0.9, "updates": 0, "head": "none", "dual": "both"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_options_outside_their_ranges_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        radmm(**{name: OUTSIDE[name]})
