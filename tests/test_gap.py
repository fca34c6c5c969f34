"""GAP: equation 4 to the letter, the released computation beside it, and counts that are exact."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import gap as oracle
from surveyed_nets import Looped, close, joined, largest, precise, prefixed
from torch import Tensor, nn
from toy import EPS, Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.attacks.pgd import pgd, starting_point
from advprune.batches import Batch
from advprune.data import ImageSet, Split
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.method import PruningMethod, State, Task
from advprune.methods.gap import Gap
from advprune.models import logits_layer
from advprune.objectives import Objective
from advprune.repro import ImageRandom, seeded
from advprune.survey import survey
from advprune.types import Masks, Threat

STEPS = 3
TASK = make_task(steps=STEPS)
IMAGES = make_images()
HEAD = logits_layer(make_net())
both_scores = pytest.mark.parametrize("score", ["eq4", "released"])


def scored(net: nn.Module, images: ImageSet, batch_size: int, task: Task = TASK) -> State:
    return survey(net, images, task, batch_size, Memory(), Gap()).state


# Which weights go


@pytest.mark.parametrize(
    ("score", "allocation", "kept"),
    [
        ("eq4", "global", [1, 1, 0, 0, 0, 1]),
        ("eq4", "uniform", [1, 1, 0, 0, 0, 1]),
        ("released", "global", [1, 1, 0, 0, 0, 1]),
        # Layer by layer, the released code removes the largest |g|.
        ("released", "uniform", [0, 0, 1, 0, 1, 1]),
    ],
)
def test_the_worked_example_comes_out(score: Any, allocation: Any, kept: list[int]) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    state = {
        "scores/0.weight": torch.tensor([[-3, -1, 0.5], [2, 0.1, -0.2]]).double(),
        "scores/2.weight": torch.full((3, 2), 99.0).double(),
    }
    # Nine of twelve stay: the six of the logits layer and half of the others.
    masks = Gap(score=score, allocation=allocation, sparsity=0.25).finish(net, state, TASK)
    assert masks["0.weight"].flatten().tolist() == [bool(k) for k in kept]
    assert bool(masks["2.weight"].all())


@both_scores
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_logits_layer_stays_whole_and_the_total_is_exact(
    score: Any, allocation: Any, sparsity: float
) -> None:
    net, draw = make_net(), generator(3)
    weights = prunable_weights(net)
    state = {f"scores/{n}": torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    masks = Gap(score=score, allocation=allocation, sparsity=sparsity).finish(net, state, TASK)
    total = sum(weight.numel() for weight in weights.values())
    assert bool(masks[HEAD].all())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, sparsity)
    rest = [name for name in masks if name != HEAD]
    left = kept_count(total, sparsity) - masks[HEAD].numel()
    if allocation == "uniform":
        share = left / (total - masks[HEAD].numel())
        assert all(abs(int(masks[n].sum()) - share * masks[n].numel()) < 1 for n in rest)
    else:  # the largest g go
        gradients = joined({name: state[f"scores/{name}"] for name in rest}, rest)
        assert np.array_equal(joined(masks, rest), largest(-gradients, left))


# Equation 4


def test_equation_4_is_the_sum_over_single_images() -> None:
    net, batch = precise(make_net(dropout=0.3)), make_batch()
    expected = oracle.scores(
        net,
        pgd(net, batch.images, batch.labels, Threat(EPS), batch.random, steps=STEPS),
        batch.labels,
    )
    got = Gap().assess(net, make_batch(), TASK)
    assert close({name: -value for name, value in got.items()}, expected, 1e-6)


def test_without_a_perturbation_scores_are_minus_the_clean_gradient() -> None:
    net = precise(make_net())
    task = Task(Objective("pgd", Threat(0.0), STEPS), 0, TASK.shape)
    state = scored(net, IMAGES, 12, task)
    clean = oracle.scores(net, IMAGES.train.images / 255, IMAGES.train.labels)
    assert close(state, prefixed({name: -value for name, value in clean.items()}), 1e-5)
    masks = Gap(sparsity=0.6).finish(net, state, task)
    rest = [name for name in clean if name != HEAD]
    kept = sum(int(masks[name].sum()) for name in rest)
    assert np.array_equal(joined(masks, rest), largest(joined(clean, rest), kept))
    # With one, they are not.
    assert not close(state, scored(net, IMAGES, 12), 0.05)


def test_the_size_of_the_batches_does_not_matter() -> None:
    net = precise(make_net())
    whole = scored(net, IMAGES, 42)
    for size in (5, 14):
        state = scored(net, IMAGES, size)
        assert close(state, whole, 1e-5)
        assert same(Gap(sparsity=0.7).finish(net, state, TASK),
                    Gap(sparsity=0.7).finish(net, whole, TASK))  # fmt: skip


def test_the_order_of_the_images_does_not_matter() -> None:
    net, batch = precise(make_net()), make_batch(12)
    first = Gap().assess(net, batch, TASK)
    order = torch.randperm(12, generator=generator(0))
    random = ImageRandom(5, torch.arange(12)[order])
    second = Gap().assess(net, Batch(batch.images[order], batch.labels[order], random), TASK)
    assert close(second, first, 1e-5)


def test_every_image_twice_gives_the_same_mask() -> None:
    train = IMAGES.train
    twice = Split(
        *(torch.cat([part, part]) for part in (train.images, train.labels, train.indices))
    )
    net = precise(make_net())
    once, double = (scored(net, replace(IMAGES, train=t), 21) for t in (train, twice))
    assert close(double, {name: 2 * value for name, value in once.items()}, 1e-5)
    assert same(*(Gap(sparsity=0.7).finish(net, state, TASK) for state in (once, double)))


def test_equation_4_reads_the_images_themselves_and_the_released_code_augmented_ones() -> None:
    assert not Gap().augmented
    assert Gap(score="released").augmented


# As released


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_released_score_is_what_its_calls_leave_in_the_gradients(dropout: float) -> None:
    net = make_net(dropout=dropout).double()
    batch, again = make_batch(), make_batch()
    x = batch.images.double()
    start = starting_point(x, Threat(EPS), batch.random, "uniform")
    with seeded(1):
        expected = oracle.released_gradients(
            net, x, start, batch.labels, EPS, 2.5 * EPS / STEPS, STEPS
        )
    with seeded(1):
        got = Gap(score="released").assess(net.eval(), Batch(x, again.labels, again.random), TASK)
    assert close(got, expected, 1e-9)


def test_the_released_score_is_not_equation_4() -> None:
    net = precise(make_net())
    flat = []
    for score in ("eq4", "released"):
        scores = Gap(score=score).assess(net, make_batch(), TASK)
        flat.append(torch.cat([value.flatten() for value in scores.values()]))
    assert float(F.cosine_similarity(*flat, dim=0)) < 0.9


# Both


@both_scores
def test_assessing_touches_no_gradient_no_buffer_and_no_mode(score: Any) -> None:
    net = make_net(dropout=0.3).eval()
    net.get_submodule("network.dropout").train()
    modes = [module.training for module in net.modules()]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(net)
    scores = Gap(score=score).assess(net, make_batch(), TASK)
    assert same(snapshot(net), before)
    assert [module.training for module in net.modules()] == modes
    for parameter in net.parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None and bool((parameter.grad == 1).all())
    assert not any(value.requires_grad for value in scores.values())


@both_scores
def test_a_layer_that_is_never_called_scores_zero(score: Any) -> None:
    scores = Gap(score=score).assess(Looped().eval(), make_batch(), TASK)
    assert [bool(value.any()) for value in scores.values()] == [True, True, False, True]


# The pass over the images


def test_a_survey_sums_in_float64() -> None:
    class Counting(PruningMethod):
        def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
            assert not net.training
            first = 0 in batch.labels and not calls
            calls.append(len(batch.labels))
            return {"w": torch.tensor([2.0**24 if first else 1.0])}

        def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
            return {}

    calls: list[int] = []
    net = make_net()
    state = survey(net, IMAGES, TASK, 6, Memory(), Counting()).state
    assert calls == [6] * 7
    assert state["scores/w"].dtype == torch.float64
    assert state["scores/w"].tolist() == [2.0**24 + 6]  # float32 would lose all six
    assert net.training
