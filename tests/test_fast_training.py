"""One attack step in place of many, watched; and attacks that grow with the training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import EPS, Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import watchdog
from advprune.attacks.pgd import pgd
from advprune.batches import Batch
from advprune.frozen import frozen
from advprune.objectives import SINGLE_STEP, Loss, Objective
from advprune.repro import ImageRandom
from advprune.train import Schedule, Trained, fit
from advprune.types import Threat

IMAGES = make_images()
SCHEDULE = Schedule(epochs=4, batch_size=16, lr=0.1)
EPOCH_STEPS = 3


def test_fgsm_rs_is_one_long_step_from_a_random_start() -> None:
    net, batch, threat = make_net(), make_batch(), Threat(EPS)
    loss = Objective("fgsm-rs", threat, steps=7)(net, batch)
    twin, again = make_net(), make_batch()
    x = pgd(twin, again.images, again.labels, threat, again.random, steps=1, step_size=1.25 * EPS)
    logits = twin(x)
    assert torch.equal(loss.value, F.cross_entropy(logits, again.labels))
    assert loss.correct == (logits.argmax(1) == again.labels).sum()


def test_n_fgsm_steps_from_noise_of_twice_the_radius_and_stays_in_the_box_alone() -> None:
    net, batch, threat = make_net(), make_batch(), Threat(EPS)
    loss = Objective("n-fgsm", threat, steps=7)(net, batch)
    twin, again = make_net(), make_batch()
    noise = 2 * EPS * (2 * again.random.uniform(*again.images.shape[1:]) - 1)
    start = (again.images + noise).clamp(0, 1).requires_grad_(True)
    with frozen(twin):
        rising = F.cross_entropy(twin(start), again.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(rising, start)
    x = (start.detach() + EPS * gradient.sign()).clamp(0, 1)
    assert float((x - again.images).abs().max()) > 1.5 * EPS
    assert torch.allclose(loss.value, F.cross_entropy(twin(x), again.labels), rtol=1e-5)


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_the_noise_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    whole, rows = make_batch(), [2, 5]
    part = Batch(whole.images[rows], whole.labels[rows], ImageRandom(5, torch.tensor(rows)))
    objective, net = replace(make_task(name=name).objective), make_net().eval()
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    objective(net, whole)
    objective(net, part)
    assert torch.equal(seen[0][rows], seen[2]), "the points that gradients are taken at"
    assert torch.allclose(seen[1][rows], seen[3]), "the images that are trained upon"


@given(st.integers(1, 20), st.integers(1, 30), st.floats(0, 1))
def test_steps_rise_from_one_to_all_and_never_fall(steps: int, epochs: int, rise: float) -> None:
    schedule = Schedule(epochs=epochs, rise=rise)
    taken = [schedule.attack_steps(steps, epoch) for epoch in range(epochs)]
    assert taken == sorted(taken)
    assert all(1 <= count <= steps for count in taken)
    assert all(count == steps for epoch, count in enumerate(taken) if epoch >= rise * epochs)
    assert taken[0] == (1 if rise else steps)


@dataclass(frozen=True)
class Counting(Objective):
    """Remembers with how many steps, and as what, it was asked."""

    requests: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        self.requests.append((self.name, self.steps))
        logits = net(batch.images)
        return Loss(F.cross_entropy(logits, batch.labels), torch.tensor(0))


def test_training_attacks_with_as_many_steps_as_its_schedule_says() -> None:
    objective = Counting("pgd", Threat(EPS), steps=5)
    task = replace(make_task(), objective=objective)
    fit(make_net(), IMAGES, task, replace(SCHEDULE, rise=0.5), Memory())
    by_epoch = [{steps for _, steps in objective.requests[i : i + 3]} for i in (0, 3, 6, 9)]
    assert by_epoch == [{1}, {3}, {5}, {5}]


# The watchdog


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the watchdog finds after each epoch, in tenths of 30 images."""
    found: list[float] = []

    def survival(_: nn.Module, val: object, *__: object, **___: object) -> Tensor:
        return torch.arange(30) < 30 * found.pop(0)

    monkeypatch.setattr(watchdog, "survival", survival)
    yield found
    assert not found


def trained(memory: Memory, *, seed: int = 0) -> tuple[nn.Module, Trained]:
    net = make_net(seed=seed)
    return net, fit(net, IMAGES, make_task(name="fgsm-rs"), SCHEDULE, memory)


def test_after_a_fall_the_best_weights_are_back_and_the_attack_takes_all_its_steps(
    accuracies: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies += [0.4, 0.6, 0.2]
    objective = Counting("n-fgsm", Threat(EPS), steps=5)
    net, begun, momenta = make_net(), [], []

    class Begun(Memory):
        def stepping(self) -> AbstractContextManager[None]:
            begun.append(snapshot(net))
            return super().stepping()

    step = torch.optim.SGD.step

    def spied(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        momenta.append(len(self.state))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spied)
    history = fit(net, IMAGES, replace(make_task(), objective=objective), SCHEDULE, Begun()).history
    assert [name for name, _ in objective.requests] == 9 * ["n-fgsm"] + 3 * ["pgd"]
    assert [row.get("watched") for row in history] == [0.4, 0.6, 0.2, None]
    assert [row.get("overfitted", False) for row in history] == [False, False, True, False]
    assert same(begun[2], begun[3]), "the best weights are those of the second epoch"
    assert not same(begun[1], begun[2])
    assert [step for step, count in enumerate(momenta) if not count] == [0, 9], "of the wrong way"


def test_what_training_loses_by_chance_is_no_fall(accuracies: list[float]) -> None:
    accuracies += [0.4, 0.6, 0.3, 0.5]
    objective = Counting("fgsm-rs", Threat(EPS), steps=5)
    fit(make_net(), IMAGES, replace(make_task(), objective=objective), SCHEDULE, Memory())
    assert {name for name, _ in objective.requests} == {"fgsm-rs"}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_that_fell_resumes_in_the_same_bits(epoch: int, accuracies: list[float]) -> None:
    accuracies += [0.6, 0.2]
    memory = Memory()
    net, whole = trained(memory)
    assert "watched" not in whole.history[2]
    accuracies += [0.6, 0.2][epoch - 1 :]
    resumed, rest = trained(Memory(memory.saves[epoch * EPOCH_STEPS]), seed=99)
    assert rest.history == whole.history
    assert same(snapshot(resumed), snapshot(net))


def test_several_steps_need_no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(watchdog, "survival")
    trained = fit(make_net(), IMAGES, make_task(), SCHEDULE, Memory())
    assert not any("watched" in row for row in trained.history)
