"""Magnitude in steps: where the cuts fall, what goes at each, for weights and for filters."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from living_nets import arch, living, noise
from oracles.ranking import largest
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import Memory, generator, make_images, make_net, make_task, same, snapshot

from advprune import models
from advprune.errors import Refused
from advprune.events import Event
from advprune.masking import bake, current_masks, maskings, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State, Task
from advprune.methods.sehwag19 import Sehwag19
from advprune.tickets import sparsity_after
from advprune.train import Schedule, fit
from export.compact import check_same, compact
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=1)
NAMES = list(prunable_weights(make_net()))
MAKERS = NAMES[:-1]
FORMS = ["weight", "filter"]
every_form = pytest.mark.parametrize("form", FORMS)
every_allocation = pytest.mark.parametrize("allocation", ["uniform", "global"])


def sehwag(form: Any = "weight", sparsity: float = 0.75, **options: Any) -> Sehwag19:
    return Sehwag19(sparsity=sparsity, granularity=form, min_channels=1, round_to=1, **options)


def started(method: Sehwag19, net: nn.Module, task: Task = TASK) -> State:
    return method.start(net, task, Optimisation(0.1, 5e-4, steps=100))


def jolt(net: nn.Module, seed: int) -> None:
    """What training might do to the weights."""
    draw = generator(seed)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)


def level(net: nn.Module) -> None:
    """Filters of one size on average in all layers, so that a global ranking empties none."""
    for name, weight in prunable_weights(net).items():
        factor = weight.flatten(1).norm(dim=1).mean()
        owner = net.get_submodule(name.removesuffix(".weight"))
        next(p for p in owner.parameters() if p.shape == weight.shape).data /= factor


def judged(net: nn.Module, form: str) -> dict[str, np.ndarray]:
    """What ranks: sizes of weights, or norms of filters of the layers that make channels."""
    weights = {name: w.double().numpy() for name, w in prunable_weights(net).items()}
    if form == "weight":
        return {name: abs(w) for name, w in weights.items()}
    return {
        name: np.sqrt((weights[name] ** 2).reshape(len(weights[name]), -1).sum(1))
        for name in MAKERS
    }


def kept_units(net: nn.Module, form: str) -> dict[str, np.ndarray]:
    masks: dict[str, np.ndarray] = {n: mask.numpy() for n, mask in current_masks(net).items()}
    if form == "weight":
        return masks
    return {name: masks[name].reshape(len(masks[name]), -1).max(axis=1) for name in MAKERS}


@every_form
@every_allocation
def test_each_cut_takes_the_smallest_that_are_there(form: str, allocation: Any) -> None:
    # A half and a quarter of 44 channels are whole numbers.
    method, net = sehwag(form, allocation=allocation, cuts=2), make_net()
    level(net)
    scores, there = judged(net, form), None
    state = started(method, net)
    for cut in (1, 2):
        if cut > 1:
            jolt(net, cut)
            level(net)
            scores = judged(net, form)
            assert method.update(net, state, Progress(100, 100, 5), TASK) == Event.PRUNE
        kept = kept_units(net, form)
        left = {
            name: s if there is None else np.where(there[name], s, -1) for name, s in scores.items()
        }
        count = sum(int(mask.sum()) for mask in kept.values())
        if allocation == "global":
            expected = largest(left, count)
            assert all(mask.any() for mask in expected.values())
        else:
            counts = {name: int(mask.sum()) for name, mask in kept.items()}
            expected = {name: largest({name: s}, counts[name])[name] for name, s in left.items()}
            density = 1 - sparsity_after(cut, 2, 0.75)
            for name, mask in kept.items():
                assert counts[name] == pytest.approx(density * mask.size, abs=1.01)
        assert all(np.array_equal(kept[name], expected[name]) for name in kept)
        size = sum(mask.size for mask in kept.values())
        assert count == kept_count(size, sparsity_after(cut, 2, 0.75))
        there = kept


@every_form
def test_a_cut_takes_filters_whole_with_what_reads_them(form: str) -> None:
    net = make_net()
    started(sehwag(form), net)
    masks = current_masks(net)
    if form == "weight":
        assert any((m.flatten(1).any(1) & ~m.flatten(1).all(1)).any() for m in masks.values())
        return
    made = {name: masks[name].flatten(1).any(dim=1) for name in MAKERS}
    for above, name in pairwise(NAMES):
        rows = made.get(name, torch.ones(len(masks[name]), dtype=torch.bool))
        whole = rows[:, None] & made[above]
        mask = masks[name]
        assert torch.equal(mask, whole.view(*whole.shape, *[1] * (mask.dim() - 2)).expand_as(mask))


def test_the_first_cut_begins_the_search_and_the_last_ends_it() -> None:
    method, net = sehwag(cuts=5), make_net()
    state = started(method, net)
    assert int(state["cuts"]) == 1
    steps = range(1, 101)
    events = [method.update(net, state, Progress(step, 100, 5), TASK) for step in steps]
    assert [s for s, event in zip(steps, events, strict=True) if event] == [25, 50, 75, 100]
    before = current_masks(net)
    assert same(method.finish(net, state, TASK), before)


@every_form
def test_in_between_what_is_left_learns_on_and_what_went_stays_away(form: str) -> None:
    net, memory, method = make_net(), Memory(every=1), sehwag(form, cuts=4)
    schedule = Schedule(epochs=3, batch_size=14, lr=0.1, validate_every=0)
    trained = fit(net, IMAGES, TASK, schedule, memory, method)
    assert [row["prune"] for row in trained.history] == [1, 1, 1]
    saves = [tensors for _, (_, tensors, _) in sorted(memory.saves.items())]

    def of(tensors: dict[str, Tensor], ending: str) -> list[Tensor]:
        return [tensors[key] for key in sorted(tensors) if key.endswith(ending)]

    for first, then in pairwise(saves):
        pairs = zip(of(first, ".mask"), of(then, ".mask"), strict=True)
        assert not any((b & ~a).any() for a, b in pairs)
        moved = zip(of(first, "weight.original"), of(then, "weight.original"), strict=True)
        assert not any(torch.equal(a, b) for a, b in moved)


@every_form
def test_the_network_ends_plain_with_zeros_where_weights_went(form: str) -> None:
    net, method = make_net().eval(), sehwag(form)
    masks = method.finish(net, started(method, net), TASK)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    for name, weight in prunable_weights(net).items():
        assert torch.equal(weight != 0, masks[name])


def test_filters_across_an_addition_are_cut_out_and_the_function_stays() -> None:
    architecture = arch("digits_resnet")
    task = Task(TASK.objective, 0, architecture.shape)
    net = bake(living("digits_resnet"), models.build(architecture)).eval()
    method = Sehwag19(sparsity=0.5, granularity="filter")
    state = started(method, net, task)
    for step in (25, 50, 75, 100):
        jolt(net, step)
        method.update(net, state, Progress(step, 100, 5), task)
    masks = method.finish(net, state, task)
    method.units(net, task).check(masks, 0.5)
    small = compact(net, architecture.shape)
    check_same(net, small.net, noise("digits_resnet", 8))
    assert all(after % 8 == 0 for _, _, after in small.groups)


@every_form
def test_a_budget_that_cannot_be_met_is_refused_before_the_run(form: str) -> None:
    net, before = make_net(), snapshot(make_net())
    with pytest.raises(Refused, match=r"lower (the|--)\s?sparsity"):
        started(sehwag(form, 0.999), net)
    assert same(snapshot(net), before) and not list(maskings(net))


def test_the_rate_starts_again_between_two_cuts() -> None:
    fractions = [(step + 0.5) / 12 for step in range(12)]
    expected = [1 / 6, 1 / 2, 5 / 6] * 4
    assert [sehwag(cuts=5).pace(f) for f in fractions] == pytest.approx(expected)


def test_the_preset_trains_before_between_and_after_the_cuts() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "sehwag19"}, environment={})
    assert recipe.adversarial.epochs == 100
    assert recipe.prune.epochs % (Sehwag19().cuts - 1) == 0
    assert recipe.finetune.epochs > 0
