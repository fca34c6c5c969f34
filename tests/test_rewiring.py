"""Weights are dropped by magnitude and grown by score, to the weight, and start at nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rewiring as oracle
from torch import Tensor, nn
from toy import generator, make_batch, make_net, make_task

from advprune.masking import bake, prunable_weights
from advprune.models import prunable
from advprune.rewiring import (
    BORN,
    Rewired,
    begin,
    droppable,
    dropped,
    grown,
    impose,
    portion,
    rewired,
    rewirings,
)


def sparse(watched: bool = True, share: float = 0.3) -> nn.Module:
    net = make_net().eval()
    counts = {name: int(share * w.numel()) for name, w in prunable_weights(net).items()}
    begin(net, counts, lambda name: generator(len(name)), watched=watched)
    return net


def loss_of(net: nn.Module, seed: int = 5) -> Tensor:
    batch = make_batch(seed=seed)
    return F.cross_entropy(net(batch.images), batch.labels)


def plain(net: nn.Module) -> nn.Module:
    return bake(net, make_net()).eval()


# The gradient of weights that are off


def test_the_gradient_that_is_seen_is_that_of_the_plain_network() -> None:
    net = sparse()
    other = plain(net)
    loss_of(net).backward()
    loss_of(other).backward()
    dense = {name: layer.weight.grad for name, layer in prunable(other).items()}
    for name, weight, rewiring in rewirings(net):
        expected: Tensor = dense[name]  # pyright: ignore
        seen = rewiring.take()
        torch.testing.assert_close(seen, expected)
        assert seen[~rewiring.mask].any()
        gradient: Tensor = weight.grad  # pyright: ignore[reportAssignmentType]
        assert torch.equal(gradient, seen * rewiring.mask)


def test_what_is_seen_is_summed_until_it_is_taken() -> None:
    net, parts = sparse(), []
    for seed in (1, 2):
        loss_of(net, seed).backward()
        parts.append([rewiring.take() for _, _, rewiring in rewirings(net)])
    for seed in (1, 2):
        loss_of(net, seed).backward()
    for index, (_, _, rewiring) in enumerate(rewirings(net)):
        torch.testing.assert_close(rewiring.take(), parts[0][index] + parts[1][index])
        assert not rewiring.take().any()


def test_neither_attacks_nor_measurements_are_seen() -> None:
    net, task = sparse(), make_task()
    task.objective(net, make_batch())  # attacks, and does not go back to the weights
    with torch.no_grad():
        net(make_batch().images)
    assert not any(rewiring.take().any() for _, _, rewiring in rewirings(net))


def test_nothing_is_kept_where_nobody_watches() -> None:
    net = sparse(watched=False)
    loss_of(net).backward()
    assert not any(rewiring.take().any() for _, _, rewiring in rewirings(net))


# Dropping and growing


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.data())
def test_the_smallest_go_and_the_best_of_those_that_were_off_come(
    size: int, seed: int, data: st.DataObject
) -> None:
    draw = generator(seed)
    weight = torch.randn(size, generator=draw).mul(4).round()  # ties, and zeros
    scores = torch.rand(size, generator=draw).mul(4).round()
    kept = data.draw(st.integers(1, size))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=draw)[:kept]] = True
    count = data.draw(st.integers(1, size))
    drop = droppable(data.draw(st.integers(0, size)), kept, size, count)
    after = rewired(weight, mask, drop, scores, count)
    assert int(after.sum()) == count
    left = oracle.drop(weight.numpy(), mask.numpy(), drop)
    expected = oracle.grow(left, scores.numpy(), count - int(left.sum()), mask.numpy())
    assert np.array_equal(after.numpy(), expected)
    assert int((mask & after).sum()) == kept - drop >= 1


def test_scores_of_zero_are_grown_too_and_before_what_is_barred() -> None:
    mask = torch.tensor([True, True, False, False])
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0])
    after = rewired(weight, mask, 1, torch.zeros(4), 2)
    assert after.tolist() == [False, True, True, False]


def test_more_than_there_are_cannot_be_grown() -> None:
    mask = torch.tensor([True, False, False])
    with pytest.raises(ValueError, match="3 of 2 weights that are off"):
        grown(mask, torch.ones(3), 3, barred=mask)
    with pytest.raises(ValueError, match="2 of 1 weights"):
        grown(mask, torch.ones(3), 2, barred=torch.tensor([False, True, False]))


def test_a_layer_that_is_whole_stays_whole() -> None:
    assert droppable(5, kept=9, size=9, count=9) == 0
    assert droppable(5, kept=8, size=9, count=8) == 1
    assert droppable(5, kept=1, size=9, count=1) == 0
    assert droppable(0, kept=6, size=9, count=4) == 2


@pytest.mark.parametrize(("share", "kept", "count"), [(0.1, 30, 3), (0.5, 3, 2), (0.0, 7, 0)])
def test_a_portion_is_rounded_up_but_not_by_rounding(share: float, kept: int, count: int) -> None:
    assert portion(share, kept) == count


def test_only_what_is_on_is_dropped_even_if_all_of_it_is_zero() -> None:
    mask = torch.tensor([False, True, True])
    assert dropped(torch.zeros(3), mask, 1).tolist() == [False, True, False]


# The layer


def test_a_beginning_keeps_what_was_asked_at_random() -> None:
    net, dense = sparse(), prunable_weights(make_net())
    for name, weight, rewiring in rewirings(net):
        assert int(rewiring.mask.sum()) == int(0.3 * dense[name].numel())
        assert torch.equal(weight, dense[name] * rewiring.mask)
    names = [name for name, _, _ in rewirings(net)]
    assert names == list(dense)


def test_what_is_dropped_is_forgotten_and_what_is_grown_starts_at_nothing() -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0, 0.0, 0.0]))
    rewiring = Rewired(torch.tensor([True, True, False, False]))
    impose(weight, rewiring, torch.tensor([True, False, True, False]))
    assert weight.tolist() == [3.0, 0.0, pytest.approx(BORN), 0.0]
    impose(weight, rewiring, torch.tensor([True, True, False, False]))
    assert weight.tolist() == [3.0, pytest.approx(BORN), 0.0, 0.0]
