"""Gradient pruning: absolute gradients of single images, or ShrinkBench's score of one batch."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import gap as signed
from oracles import gradient as oracle
from surveyed_nets import Looped, close, joined, largest, prefixed
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.batches import Batch, batches
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.methods import gradient
from advprune.methods.gradient import Gradient
from advprune.models import logits_layer
from advprune.repro import seeded
from advprune.survey import survey

TASK = make_task()
IMAGES = make_images()
HEAD = logits_layer(make_net())
both_scores = pytest.mark.parametrize("score", ["eq3", "shrinkbench"])


def test_equation_3_is_the_sum_over_single_images() -> None:
    net, batch = make_net(dropout=0.3).eval(), make_batch(11)
    got = Gradient().assess(net, batch, TASK)
    assert close(got, oracle.absolute_sum(net, batch.images, batch.labels), 1e-5)


def test_gradients_of_different_images_do_not_cancel() -> None:
    net, batch = make_net().eval(), make_batch(12)
    got = Gradient().assess(net, batch, TASK)
    summed = signed.scores(net, batch.images, batch.labels)
    assert all(bool((got[n] >= summed[n].abs() * (1 - 1e-4) - 1e-6).all()) for n in got)
    assert all(float(got[n].sum()) > 1.2 * float(summed[n].abs().sum()) for n in got)


@pytest.mark.parametrize("floats", [1, 5000, 10**9])
def test_how_many_gradients_are_held_at_once_does_not_matter(
    floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = make_net().double().eval(), make_batch(11)
    monkeypatch.setattr(gradient, "_GRADIENT_FLOATS", floats)
    got = Gradient().assess(net, batch, TASK)
    assert close(got, oracle.absolute_sum(net, batch.images.double(), batch.labels), 1e-6)


def test_equation_3_does_not_depend_on_the_batches() -> None:
    net = make_net().double()
    expected = oracle.absolute_sum(net, IMAGES.train.images / 255, IMAGES.train.labels)
    masks = []
    for size in (42, 14, 5):
        state = survey(net, IMAGES, TASK, size, Memory(), Gradient()).state
        assert close(state, prefixed(expected), 1e-5)
        masks.append(Gradient(sparsity=0.7).finish(net, state, TASK))
    assert same(masks[0], masks[1])
    assert same(masks[0], masks[2])


def test_shrinkbench_reads_one_batch_in_training_mode() -> None:
    net, memory = make_net(dropout=0.3).double(), Memory()
    method = Gradient(score="shrinkbench")
    state = survey(net, IMAGES, TASK, 6, memory, method).state
    assert [progress.step for progress, _ in memory.steps] == [1]
    first = next(batches(IMAGES, TASK.seed, 0, 7))
    with seeded(TASK.seed, "layers", 0):
        expected = oracle.shrinkbench(net, first.images, first.labels)
    assert close(state, prefixed(expected), 1e-6)
    assert method.augmented
    assert not Gradient().augmented
    assert Gradient().batches_needed(7) == 7


@both_scores
def test_assessing_touches_no_gradient_no_buffer_and_no_mode(score: Any) -> None:
    net = make_net(dropout=0.3).eval()
    net.get_submodule("network.dropout").train(score == "shrinkbench")
    modes = [module.training for module in net.modules()]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(net)
    scores = Gradient(score=score).assess(net, make_batch(), TASK)
    assert same(snapshot(net), before)
    assert [module.training for module in net.modules()] == modes
    for parameter in net.parameters():
        assert parameter.grad is not None and bool((parameter.grad == 1).all())
    # Nor do the sums over a whole data set hold on to the graphs of all its batches.
    assert not any(value.requires_grad for value in scores.values())


@both_scores
def test_a_layer_that_is_never_called_scores_zero(score: Any) -> None:
    scores = Gradient(score=score).assess(Looped().eval(), make_batch(), TASK)
    assert [bool(value.any()) for value in scores.values()] == [True, True, False, True]


@both_scores
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_the_smallest_go_and_the_logits_layer_stays_whole(score: Any, allocation: Any) -> None:
    net, draw = make_net(), generator(3)
    weights = prunable_weights(net)
    state = {f"scores/{n}": torch.rand(w.shape, generator=draw) for n, w in weights.items()}
    state[f"scores/{HEAD}"] *= 1e-3  # the first to go, if it were not exempt
    masks = Gradient(score=score, allocation=allocation, sparsity=0.8).finish(net, state, TASK)
    total = sum(weight.numel() for weight in weights.values())
    kept = kept_count(total, 0.8)
    assert bool(masks[HEAD].all())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept
    rest = [name for name in weights if name != HEAD]
    share = (kept - masks[HEAD].numel()) / (total - masks[HEAD].numel())
    for names in [rest] if allocation == "global" else [[name] for name in rest]:
        flat = joined({name: state[f"scores/{name}"] for name in names}, names)
        got = joined(masks, names)
        assert abs(int(got.sum()) - share * flat.size) < 1
        assert np.array_equal(got, largest(flat, int(got.sum())))


def test_a_batch_is_read_as_it_is() -> None:
    """Equation 3 is about clean images: no random stream is drawn from."""

    class Silent:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"{name} is drawn")

    batch = make_batch()
    Gradient().assess(make_net().eval(), Batch(batch.images, batch.labels, Silent()), TASK)  # pyright: ignore
