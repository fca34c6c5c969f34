"""PwoA: pull, cut and tune by the clean answers of the network before, as a plain loop would."""

from typing import Any

import pytest
import torch
from oracles import pwoa as oracle
from pydantic import ValidationError
from torch import nn
from toy import CLASSES, Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import hsic, objectives
from advprune.allocate import allocate
from advprune.batches import batches
from advprune.epochs import part
from advprune.events import Event
from advprune.masking import bake, prunable_weights
from advprune.method import Optimisation, Progress, State
from advprune.methods.pwoa import PwoA, teach
from advprune.models import logits_layer
from advprune.objectives import Objective
from advprune.train import Schedule, fit
from advprune.units import SingleWeights
from export.compact import check_same, compact
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=1)
SCHEDULE = Schedule(epochs=4, batch_size=14, lr=0.1, validate_every=0)
STEPS = 12


def pwoa(sparsity: float = 0.75, **options: Any) -> PwoA:
    return PwoA(sparsity=sparsity, **options)


def started(method: PwoA, net: nn.Module, steps: int = 30) -> State:
    return method.start(net, TASK, Optimisation(0.1, 5e-4, steps))


def outspoken() -> nn.Module:
    """Answers that a temperature does not make all alike."""
    net = make_net()
    prunable_weights(net)[logits_layer(net)].mul_(10.0)
    return net


def reach(step: int, steps: int = 30) -> Progress:
    return Progress(step, steps, epoch_steps=10)


# The whole search


@pytest.mark.parametrize("share", [1 / 3, 0.5, 0.9])
def test_it_is_what_a_plain_loop_in_double_precision_comes_to(share: float) -> None:
    weights = {"lambda_x": 0.02, "lambda_y": 0.05}
    method = pwoa(prune_at=share, rho=1.0, updates=2, **weights)
    net = outspoken()
    trained = fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
    masks = method.finish(net, trained.state, TASK)
    shown = [
        (batch.images.double(), batch.labels)
        for epoch in range(4)
        for batch in batches(IMAGES, TASK.seed, epoch, 3)
    ]
    assert len(shown) == STEPS
    kept = allocate("uniform", prunable_weights(net), 0.75)
    cut = {1 / 3: 4, 0.5: 6, 0.9: 11}[share]
    settings = oracle.Settings(0.1, 0.9, 5e-4, share, cut, 2, 1.0, 0.02, 0.05, kept)
    expected = oracle.search(outspoken().double(), shown, settings).state_dict()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name] != 0)
        assert int(mask.sum()) == kept[name]
    assert [row.get("prune", 0) for row in trained.history].count(1) == 1
    assert [row.get("reset", 0) for row in trained.history].count(1) == 1


def test_nothing_is_attacked_whatever_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    def attacked(*_: object, **__: object) -> None:
        raise AssertionError("attacked")

    for name in ("pgd", "ascent", "cross_entropy_attack"):
        monkeypatch.setattr(objectives, name, attacked)
    monkeypatch.setattr(Objective, "asked", attacked)
    monkeypatch.setattr("advprune.train.validate", lambda *_: {})
    found = []
    for name in ("natural", "pgd", "trades", "mart"):
        net = make_net()
        fit(net, IMAGES, make_task(0, name), SCHEDULE, Memory(), pwoa())
        found.append(snapshot(net))
    assert all(same(found[0], each) for each in found[1:])


# The teacher


def test_the_teacher_is_the_network_before_in_eval_mode_and_stays_so() -> None:
    net, before = make_net(dropout=0.5), snapshot(make_net(dropout=0.5))
    trained = fit(net, IMAGES, TASK, SCHEDULE, Memory(), pwoa())
    teacher = part(trained.state, "teacher/")
    assert same(teacher, before)
    net.train()
    net.get_submodule("network.bn2").eval()
    after, modes = snapshot(net), [module.training for module in net.modules()]
    taught = teach(net, teacher, make_batch().images, TASK)
    assert torch.equal(taught, make_net().eval()(make_batch().images))
    assert not taught.requires_grad
    assert same(snapshot(net), after)
    assert [module.training for module in net.modules()] == modes
    (group,) = pwoa().groups(net, Optimisation(0.1, 5e-4, 10))
    assert {id(p) for p in group["params"]} == {id(p) for p in net.parameters()}
    assert not any(m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())


def test_what_is_resumed_learns_from_the_same_teacher() -> None:
    whole, memory = make_net(), Memory(every=1)
    fit(whole, IMAGES, TASK, SCHEDULE, memory, pwoa())
    for step in (2, 4, 9):
        # Whatever network it is begun with, what was saved says who taught.
        other = make_net(seed=7)
        fit(other, IMAGES, TASK, SCHEDULE, Memory(memory.saves[step]), pwoa())
        assert same(snapshot(other), snapshot(whole))


# The loss of each phase


def test_before_the_cut_it_is_kd_and_the_pull_and_after_it_kd_and_the_bottleneck() -> None:
    net, method, batch = make_net().eval(), pwoa(rho=2.0, lambda_x=0.3, lambda_y=0.7), make_batch()
    state = started(method, net)
    # The student is its teacher still, so that KD is nothing.
    pull = 0.0
    for name, weight in prunable_weights(net).items():
        pull += float((weight - state[f"Z/{name}"]).double().square().sum())
    found = method.loss(net, state, batch, TASK)
    assert float(found.value.detach()) == pytest.approx(pull, rel=1e-4)
    assert int(found.correct) == int((net(batch.images).argmax(1) == batch.labels).sum())
    state["pruned"].fill_(True)
    _, read = oracle.forward(net, batch.images)
    expected = hsic.bottleneck(read, batch.images, batch.labels, CLASSES, 0.3, 0.7)
    tuned = method.loss(net, state, batch, TASK)
    assert float(tuned.value.detach()) == pytest.approx(float(expected.detach()), abs=2e-3)
    assert abs(float(expected.detach())) > 0.1
    plain = pwoa(lambda_x=0, lambda_y=0).loss(net, state, batch, TASK)
    assert float(plain.value.detach()) == pytest.approx(0.0, abs=1e-3)


# The phases


@pytest.mark.parametrize(("share", "at"), [(0.0, 1), (1 / 3, 10), (0.5, 15), (1.0, 30)])
def test_it_cuts_once_and_holds(share: float, at: int) -> None:
    net, method = make_net(), pwoa(prune_at=share, updates=3)
    state = started(method, net)
    draw = torch.Generator().manual_seed(0)
    found: dict[int, Event] = {}
    for step in range(1, 31):
        for name, weight in prunable_weights(net).items():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
            assert (weight != 0).all(), name
        event = method.update(net, state, reach(step), TASK)
        if event:
            found[step] = event
        for name, weight in prunable_weights(net).items():
            removed = ~state[f"mask/{name}"]
            assert bool(removed.any()) == (step >= at)
            assert not weight[removed].any()
            assert (weight[~removed] != 0).all()
    assert found == {at: Event.PRUNE | Event.RESET}
    assert int(state["updates"]) == (0 if share == 0 else 3)
    masks = method.finish(net, state, TASK)
    assert all(torch.equal(mask, state[f"mask/{name}"]) for name, mask in masks.items())
    SingleWeights(net).check(masks, 0.75)


def test_without_a_step_it_is_a_cut_by_magnitude() -> None:
    net, method = make_net(), pwoa()
    masks = method.finish(net, started(method, net, steps=0), TASK)
    for name, weight in prunable_weights(make_net()).items():
        kept = weight.abs()[masks[name]].min()
        assert kept >= weight.abs()[~masks[name]].max()
        assert torch.equal(prunable_weights(net)[name], weight * masks[name])


def test_the_rate_descends_in_each_phase_and_the_second_starts_at_half() -> None:
    method, schedule = pwoa(prune_at=0.25), Schedule(epochs=1)
    rates = [schedule.rate(method.pace(index / 1000)) for index in range(1000)]
    assert rates[0] == 1.0 and rates[249] == pytest.approx(0.0, abs=1e-4)
    assert rates[250] == pytest.approx(0.5) and rates[999] == pytest.approx(0.0, abs=1e-2)
    for first, last in ((0, 249), (250, 999)):
        assert rates[first : last + 1] == sorted(rates[first : last + 1], reverse=True)
    assert [pwoa(prune_at=1).pace(f) for f in (0.0, 0.5, 0.99)] == [0.0, 0.5, 0.99]


def test_rho_follows_the_length_of_the_pull_unless_told() -> None:
    released = pwoa().start(make_net(), TASK, Optimisation(0.01, 1e-4, 150 * 391))
    assert float(released["rho"]) == pytest.approx(0.01, rel=1e-3)
    shorter = pwoa(prune_at=1.0).start(make_net(), TASK, Optimisation(0.1, 1e-4, 391))
    assert float(shorter["rho"]) == pytest.approx(0.05, rel=1e-3)
    assert float(started(pwoa(rho=0.3), make_net())["rho"]) == pytest.approx(0.3)


@pytest.mark.parametrize("allocation", ["erk", "lamp"])
def test_the_counts_are_the_allocation_s_and_fixed_at_the_start(allocation: Any) -> None:
    net, method = make_net(), pwoa(allocation=allocation)
    expected = allocate(allocation, prunable_weights(net), 0.75)
    state = started(method, net)
    for weight in prunable_weights(net).values():
        weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(8)))
    masks = method.finish(net, state, TASK)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == expected


# Channels


def test_channels_that_were_cut_can_be_taken_out() -> None:
    net, method = make_net(), pwoa(0.5, granularity="filter", min_channels=1, round_to=1)
    trained = fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
    masks = method.finish(net, trained.state, TASK)
    plain = bake(net, make_net(seed=5)).eval()
    method.units(plain, TASK).check(masks, 0.5)
    small = compact(plain, IMAGES.shape)
    check_same(plain, small.net, IMAGES.val.images)
    assert small.parameters[1] < 0.5 * small.parameters[0]


# Settings


def test_the_preset_is_the_paper_s() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "pwoa"}, environment={})
    assert recipe.adversarial.objective == "trades"
    assert (recipe.prune.epochs, recipe.finetune.epochs) == (150, 0)
    assert (recipe.prune.lr, recipe.prune.weight_decay) == (0.01, 1e-4)


OUTSIDE = {"prune_at": 1.5, "rho": 0.0, "updates": 0, "lambda_x": -1.0, "lambda_y": -1.0}


@pytest.mark.parametrize("name", OUTSIDE)
def test_options_outside_their_ranges_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        pwoa(**{name: OUTSIDE[name]})
