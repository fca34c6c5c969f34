"""TwinRep: factors that start as the network, one early cut of the smallest products, a fold."""

from typing import Any

import numpy as np
import pytest
import torch
from living_nets import arch, living, noise
from oracles import twinrep as oracle
from oracles.ranking import largest
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import models
from advprune.errors import Refused
from advprune.masking import bake, hold, maskings, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State, Task
from advprune.methods.twinrep import TwinRep
from advprune.models import prunable
from advprune.train import Schedule, fit
from export.compact import check_same, compact
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=1)
NAMES = list(prunable_weights(make_net()))
FORMS = ["weight", "channel"]
every_form = pytest.mark.parametrize("form", FORMS)


def twinrep(form: Any, sparsity: float = 0.75, **options: Any) -> TwinRep:
    return TwinRep(sparsity=sparsity, granularity=form, min_channels=1, round_to=1, **options)


def started(method: TwinRep, net: nn.Module, task: Task = TASK) -> State:
    return method.start(net, task, Optimisation(0.1, 5e-4, steps=100))


def factors(net: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Weight name -> the layer's own parameter, and the one that multiplies it."""
    found = {}
    for name, layer, masking in maskings(net):
        own: nn.Parameter = layer.parametrizations.weight.original  # pyright: ignore
        (other,) = masking.parameters()
        found[name] = (own, other)
    return found


def jolt(net: nn.Module, seed: int = 3) -> None:
    """What training might do to the factors."""
    draw = generator(seed)
    for pair in factors(net).values():
        for factor in pair:
            factor.data += 0.3 * torch.randn(factor.shape, generator=draw)


def masks_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: masking.get_buffer("mask").clone() for name, _, masking in maskings(net)}


def effective(net: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in prunable_weights(net).items()}


def reach(step: int, steps: int = 100) -> Progress:
    return Progress(step, steps, epoch_steps=10)


# The factors


def test_the_second_factor_starts_positive_and_as_large_as_fan_in_allows() -> None:
    net, before = make_net(), effective(make_net())
    started(twinrep("weight"), net)
    assert set(factors(net)) == set(NAMES)
    for name, (own, other) in factors(net).items():
        assert torch.equal(own, before[name]) and own.requires_grad and other.requires_grad
        shares = other.detach() * before[name][0].numel() ** 0.5
        assert 0.0 < shares.min() < 0.1 and 0.9 < shares.max() <= 1.0
        assert shares.mean().item() == pytest.approx(0.5, abs=0.1)
        assert torch.equal(effective(net)[name], own * other)


def test_the_second_factor_comes_from_the_seed_and_the_layer() -> None:
    drawn = []
    for seed in (0, 0, 1):
        net = make_net()
        started(twinrep("weight"), net, make_task(seed))
        drawn.append({name: other.detach() for name, (_, other) in factors(net).items()})
    assert same(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in NAMES)


@pytest.mark.parametrize("name", ["toy", "mobilenet_v2_cifar"])
def test_mixing_starts_at_the_network_as_it_is(name: str) -> None:
    known = name != "toy"
    dense = living(name) if known else make_net().eval()
    net = bake(dense, models.build(arch(name)) if known else make_net()).eval()
    shape = arch(name).shape if known else TASK.shape
    started(twinrep("channel", 0.5), net, Task(TASK.objective, 0, shape))
    for key, (own, other) in factors(net).items():
        assert torch.equal(own, dense.get_parameter(key)) and own.requires_grad
        assert torch.equal(other, torch.eye(len(own))) and other.requires_grad
        assert torch.equal(effective(net)[key], own)


@every_form
def test_one_step_is_plain_sgd_with_decay_on_both_factors(form: str) -> None:
    net, plain = make_net().eval(), make_net().eval()
    method = twinrep(form)
    started(method, net)
    jolt(net)
    before = {
        name: (own.detach().double().numpy(), other.detach().double().numpy())
        for name, (own, other) in factors(net).items()
    }
    plain.load_state_dict(bake(net, make_net()).state_dict())
    gradients = torch.autograd.grad(
        TASK.objective(plain, make_batch()).value,
        [layer.weight for layer in prunable(plain).values()],
    )
    optimisation = Optimisation(0.1, 0.05, steps=100, momentum=0.0)
    optimiser = method.optimiser(method.groups(net, optimisation), optimisation)
    method.loss(net, {}, make_batch(), TASK).value.backward()
    optimiser.step()
    chain = oracle.twin_gradients if form == "weight" else oracle.mixed_gradients
    for (name, (own, other)), gradient in zip(before.items(), gradients, strict=True):
        slopes = chain(own, other, gradient.double().numpy())
        expected = oracle.step((own, other), slopes, 0.1, 0.05)
        for factor, value in zip(factors(net)[name], expected, strict=True):
            np.testing.assert_allclose(factor.detach().numpy(), value, rtol=1e-3, atol=1e-5)


def test_decay_of_the_factors_makes_weights_fade_that_nothing_holds() -> None:
    """Two weights, one of which the loss pulls to 1: the other one ends at zero, not near it."""
    layer = nn.Conv2d(2, 1, 1, bias=False)
    layer.weight.data = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
    net = nn.Sequential(layer)
    shared = Optimisation(0.1, 0.1, steps=400, momentum=0.0)
    method = twinrep("weight", 0.0)
    method.start(net, Task(TASK.objective, 0, (2, 1, 1)), shared)
    optimiser = method.optimiser(method.groups(net, shared), shared)
    for _ in range(400):
        optimiser.zero_grad()
        held, free = layer.weight.flatten()
        (0.5 * (held - 1.0) ** 2 + 0.0 * free).backward()
        optimiser.step()
    held, free = layer.weight.detach().flatten().tolist()
    # Least of (w - 1)^2 / 2 + decay |w|.
    assert held == pytest.approx(0.9, abs=1e-3)
    assert 0.0 < free < 1e-3


# The cut


@every_form
def test_nothing_goes_before_a_tenth_of_the_run_and_once_it_went_it_stays(form: str) -> None:
    net = make_net()
    method = twinrep(form)
    state = started(method, net)
    for step in range(1, 10):
        jolt(net, step)
        method.update(net, state, reach(step), TASK)
        assert all(mask.all() for mask in masks_of(net).values())
        assert not state["pruned"]
    method.update(net, state, reach(10), TASK)
    chosen = masks_of(net)
    assert state["pruned"] and not all(mask.all() for mask in chosen.values())
    for step in range(11, 15):
        jolt(net, step)
        method.update(net, state, reach(step), TASK)
        assert same(masks_of(net), chosen)
        for name, weight in effective(net).items():
            assert torch.equal(weight != 0, chosen[name])


@pytest.mark.parametrize(("share", "first"), [(0.0, 1), (0.37, 37), (1.0, 100)])
def test_the_share_says_when(share: float, first: int) -> None:
    net = make_net()
    method = twinrep("weight", prune_at=share)
    state = started(method, net)
    pruned = []
    for step in range(1, 101):
        method.update(net, state, reach(step), TASK)
        pruned.append(bool(state["pruned"]))
    assert pruned.index(True) + 1 == first


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_largest_products_of_all_layers_stay(sparsity: float) -> None:
    net = make_net()
    method = twinrep("weight", sparsity)
    state = started(method, net)
    jolt(net)
    products = {
        name: np.abs(own.detach().numpy() * other.detach().numpy())
        for name, (own, other) in factors(net).items()
    }
    total = sum(product.size for product in products.values())
    expected = largest(products, kept_count(total, sparsity))
    assert all(kept.any() for kept in expected.values())
    method.update(net, state, reach(10), TASK)
    for name, mask in masks_of(net).items():
        assert np.array_equal(mask.numpy(), expected[name])


# Of 44 channels both keep a whole number.
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_the_channels_with_the_largest_filters_stay_in_what_makes_and_what_reads_them(
    sparsity: float,
) -> None:
    net = make_net()
    method = twinrep("channel", sparsity)
    state = started(method, net)
    jolt(net)
    for name, weight in effective(net).items():
        factors(net)[name][1].data /= weight.flatten(1).norm(dim=1).mean()
    makers = NAMES[:-1]
    norms = {
        name: np.linalg.norm(weight.flatten(1).double().numpy(), axis=1)
        for name, weight in effective(net).items()
        if name in makers
    }
    # 8 + 16 + 20 channels; the weights of the logits make none.
    kept = largest(norms, int(44 * (1 - sparsity)))
    assert all(rows.any() for rows in kept.values())
    method.update(net, state, reach(10), TASK)
    for name, mask in masks_of(net).items():
        above = NAMES[NAMES.index(name) - 1]
        rows = torch.from_numpy(kept.get(name, np.ones(len(mask), dtype=bool)))
        read = kept[above] if name != NAMES[0] else np.ones(1, dtype=bool)
        pairs = rows[:, None] & torch.from_numpy(read)
        assert torch.equal(mask, pairs.view(*pairs.shape, *[1] * (mask.dim() - 2)).expand_as(mask))


@every_form
def test_the_cut_changes_no_weight_and_no_parameter(form: str) -> None:
    net = make_net()
    method = twinrep(form)
    state = started(method, net)
    jolt(net)
    weights, before = effective(net), dict(net.named_parameters())
    method.update(net, state, reach(10), TASK)
    for name, mask in masks_of(net).items():
        assert torch.equal(effective(net)[name], weights[name] * mask)
    # The optimiser holds on to them.
    after = dict(net.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_tracing_the_network_for_the_cut_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = make_net(), []
    method = twinrep("channel")
    state = started(method, net)
    traced = TwinRep.channel_units
    monkeypatch.setattr(
        TwinRep, "channel_units", lambda *given: calls.append(given) or traced(*given)
    )
    for step in range(1, 101):
        method.update(net, state, reach(step), TASK)
    method.finish(net, state, TASK)
    assert len(calls) == 1


@every_form
def test_what_is_left_goes_on_learning(form: str) -> None:
    net, memory = make_net(), Memory()
    schedule = Schedule(epochs=10, batch_size=14, lr=0.1, validate_every=0)
    trained = fit(net, IMAGES, TASK, schedule, memory, twinrep(form))
    _, early, _ = memory.saves[2 * 3]
    moved = {
        key: value
        for key, value in net.state_dict().items()
        if key.endswith("original") or key.endswith(("twin", "mix"))
    }
    assert len(moved) == 2 * len(NAMES)
    assert all(not torch.equal(value, early[f"net/{key}"]) for key, value in moved.items())
    held = {key: value for key, value in early.items() if key.endswith("mask")}
    now = {f"net/{key}": value for key, value in net.state_dict().items() if key.endswith("mask")}
    assert same(held, now) and not all(mask.all() for mask in held.values())
    losses = [row["loss"] for row in trained.history]
    assert losses[-1] < losses[1]


def test_a_budget_that_no_layer_can_meet_is_refused_before_the_run() -> None:
    for form in FORMS:
        net, before = make_net(), snapshot(make_net())
        with pytest.raises(Refused, match=r"lower (the|--)\s?sparsity"):
            started(twinrep(form, 0.999), net)
        assert same(snapshot(net), before)


# The end


@every_form
def test_the_factors_are_multiplied_out(form: str) -> None:
    net = make_net().eval()
    method = twinrep(form)
    state = started(method, net)
    method.update(net, state, reach(10), TASK)
    jolt(net)
    images = make_batch().images
    expected, weights = net(images), effective(net)
    masks = method.finish(net, state, TASK)
    assert not list(maskings(net))
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    assert set(snapshot(net)) == set(snapshot(make_net()))
    assert {type(module) for module in net.modules()} == {type(m) for m in make_net().modules()}
    assert same(effective(net), weights)
    assert torch.equal(net(images), expected)
    for name, weight in weights.items():
        assert torch.equal(masks[name], weight != 0)


@every_form
def test_without_a_single_step_the_end_cuts(form: str) -> None:
    net = make_net()
    method = twinrep(form)
    masks = method.finish(net, started(method, net), TASK)
    assert not all(mask.all() for mask in masks.values())
    for name, weight in effective(net).items():
        assert torch.equal(masks[name], weight != 0)


def test_channels_across_an_addition_are_cut_out_and_the_function_stays() -> None:
    architecture = arch("digits_resnet")
    task = Task(TASK.objective, 0, architecture.shape)
    net = bake(living("digits_resnet"), models.build(architecture)).eval()
    method = TwinRep(sparsity=0.5, granularity="channel")
    state = started(method, net, task)
    jolt(net)
    method.update(net, state, reach(10), task)
    masks = method.finish(net, state, task)
    method.units(net, task).check(masks, 0.5)
    images = noise("digits_resnet", 8)
    small = compact(net, architecture.shape)
    check_same(net, small.net, images)
    widths = {name: after for name, _, after in small.groups}
    assert all(width % 8 == 0 for width in widths.values())
    assert sum(widths.values()) <= 448 // 2 < sum(widths.values()) + 8
    # The fine-tuning that other papers have holds what is left.
    hold(net, masks)
    with torch.no_grad():
        torch.testing.assert_close(net(images), small.net.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_paper_trains_from_scratch_for_a_hundred_epochs_and_no_more() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "twinrep"}, environment={})
    assert (recipe.standard.epochs, recipe.adversarial.epochs, recipe.finetune.epochs) == (0, 0, 0)
    assert (recipe.prune.epochs, recipe.prune.lr, recipe.prune.weight_decay) == (100, 0.1, 2e-4)
    assert recipe.attack_steps == 10
    assert TwinRep().prune_at == 0.1
