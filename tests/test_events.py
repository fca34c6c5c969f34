"""What a method does beside learning is counted, checkpointed, and answered by the loop."""

from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from scripted import EPOCH_STEPS, EPOCHS, IMAGES, Scripted, run
from torch import Tensor
from toy import Memory, make_net, make_task, same, snapshot

from advprune.events import Event, forget_removed
from advprune.masking import Fixed, attach, maskings
from advprune.train import Schedule, Trained, fit


def rows(trained: Trained, key: str) -> list[Any]:
    return [row.get(key) for row in trained.history]


def test_events_are_counted_in_the_row_of_their_epoch() -> None:
    script = {1: Event.PRUNE, 3: Event.REWIRE, 4: Event.REWIRE | Event.RESET, 7: Event.FREEZE}
    _, trained, _ = run(script)
    assert rows(trained, "prune") == [1, None, None, None]
    assert rows(trained, "rewire") == [None, 2, None, None]
    assert rows(trained, "reset") == [None, 1, None, None]
    assert rows(trained, "freeze") == [None, None, None, 1]


@pytest.mark.parametrize("event", [e for e in Event if e is not Event.REWIRE])
def test_an_event_leaves_a_checkpoint_behind_it(event: Event) -> None:
    _, _, memory = run({3: event}, Memory())
    assert 3 in memory.saves


def test_rewiring_leaves_none_for_it_may_come_with_every_step() -> None:
    _, _, memory = run({3: Event.REWIRE}, Memory())
    assert sorted(memory.saves) == [2, 4, 6, 8]


@pytest.mark.parametrize("event", [Event.REWIND, Event.RESET])
def test_a_new_optimiser_remembers_nothing(event: Event) -> None:
    _, _, memory = run({4: event})
    momenta = {k for k in memory.saves[4][1] if k.startswith("optimiser/")}
    assert not momenta
    assert any(k.startswith("optimiser/") for k in memory.saves[5][1])


def test_a_rewind_starts_again_from_the_weights_it_put_back() -> None:
    net, _, _ = run({4: Event.REWIND})
    forgetful, _, _ = run({4: Event.RESET})
    never, _, _ = run({})
    states = [snapshot(each) for each in (net, forgetful, never)]
    assert not same(states[0], states[1])
    assert not same(states[1], states[2])


@pytest.mark.parametrize("event", [Event.PRUNE, Event.REWIRE])
def test_what_is_removed_is_forgotten_by_the_optimiser(event: Event) -> None:
    net, _, memory = run({4: event})
    names = [name for name, _ in net.named_parameters()]
    masks: dict[str, Tensor] = {name: it.mask for name, _, it in maskings(net)}  # pyright: ignore
    for name, mask in masks.items():
        original = name.removesuffix("weight") + "parametrizations.weight.original"
        slot = f"optimiser/{names.index(original)}/momentum_buffer"
        assert memory.saves[3][1][slot].masked_select(~mask).any()
        assert not memory.saves[4][1][slot].masked_select(~mask).any()
        assert memory.saves[4][1][slot].masked_select(mask).any()


def test_only_slots_of_the_weights_shape_are_masked() -> None:
    net = make_net()
    attach(net, lambda _, weight: Fixed(torch.zeros_like(weight, dtype=torch.bool)))
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    net(IMAGES.train.images / 255).sum().backward()
    adam.step()
    for _, layer, _ in maskings(net):
        slots = adam.state[layer.parametrizations.weight.original]  # pyright: ignore
        slots["exp_avg"].fill_(1.0)
    forget_removed(net, adam)
    for _, layer, _ in maskings(net):
        slots = adam.state[layer.parametrizations.weight.original]  # pyright: ignore
        assert not slots["exp_avg"].any()
        assert slots["step"] == 1


@pytest.mark.parametrize("step", [3, 4])
def test_a_stop_ends_the_search_after_its_epoch(step: int) -> None:
    _, trained, memory = run({step: Event.STOP})
    assert rows(trained, "epoch") == [1, 2]
    assert rows(trained, "stop") == [None, 1]
    assert "val_robust" in trained.history[-1]
    assert max(memory.saves) == 4
    assert len(memory.epochs) == 2


def test_the_last_epoch_is_measured_also_where_only_the_end_is() -> None:
    net = make_net()
    schedule = Schedule(epochs=EPOCHS, batch_size=12, lr=0.1, validate_every=0)
    method = Scripted(script={2: Event.STOP})
    trained = fit(net, IMAGES, make_task(), schedule, Memory(), method)
    assert "val_robust" in trained.history[-1]


def test_a_method_is_told_every_row_once() -> None:
    _, trained, _ = run({})
    expected = sum(row["epoch"] + row["val_robust"] for row in trained.history)
    assert float(trained.state["told"]) == pytest.approx(expected)


SCRIPTS = {
    "all": {
        1: Event.PRUNE,
        3: Event.REWIRE,
        4: Event.REWIND | Event.PRUNE,
        5: Event.RESET,
        6: Event.FREEZE,
    },
    "stop inside": {2: Event.PRUNE, 5: Event.STOP},
    "stop at the end": {3: Event.RESET, 6: Event.STOP},
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_search_resumes_after_any_step_in_the_same_bits(script: dict[int, Event]) -> None:
    net, trained, memory = run(script)
    assert len(memory.saves) == EPOCH_STEPS * len(trained.history)
    for step, tensors, history in memory.saves.values():
        again = Memory((step, load(save(tensors)), history), every=1)
        resumed, ended, _ = run(script, again)
        assert same(snapshot(resumed), snapshot(net)), step
        assert same(ended.state, trained.state)
        assert ended.history == trained.history


def test_the_learning_rate_goes_round_as_often_as_the_method_says() -> None:
    once, _, first = run({}, rounds=1)
    twice, _, second = run({}, rounds=2)
    assert not same(snapshot(once), snapshot(twice))
    # The second of two rounds begins at the peak again: its first step moves the weights more.
    moved = [_moved(memory, 5) for memory in (first, second)]
    assert moved[1] > moved[0]


def _moved(memory: Memory, step: int) -> float:
    before, after = memory.saves[step - 1][1], memory.saves[step][1]
    names = [k for k in after if k.startswith("net/") and k.endswith("original")]
    return sum(float((after[k] - before[k]).norm()) for k in names)
