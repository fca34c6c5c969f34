"""Free adversarial training: one backward pass moves weights and images, m times a batch."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import EPS, Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import method as methods
from advprune.batches import Batch, batches
from advprune.distillation import Distilled
from advprune.masking import hold, prunable_weights
from advprune.masks import keep_top
from advprune.method import Task
from advprune.objectives import Objective
from advprune.replays import moving, replayed
from advprune.repro import ImageRandom
from advprune.train import Schedule, Trained, fit
from advprune.types import Norm, Threat

IMAGES = make_images()
SCHEDULE = Schedule(epochs=2, batch_size=16, lr=0.1, warmup=0.2)
EPOCH_BATCHES, TIMES = 3, 3
STEPS = SCHEDULE.epochs * EPOCH_BATCHES * TIMES


def task(norm: Norm = "linf", eps: float = EPS) -> Task:
    objective = Objective("free", Threat(eps, norm=norm), steps=2, replays=TIMES)
    return replace(make_task(), objective=objective)


class Doubled(nn.Module):
    """A network in float64 that takes images in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_net().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def plain_loop(net: nn.Module, norm: Norm, eps: float) -> list[float]:
    """Algorithm 1 of the paper from random starts, in float64, with SGD written out."""
    speed = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    losses, step = [], 0
    for epoch in range(SCHEDULE.epochs):
        for batch in batches(IMAGES, 0, epoch, EPOCH_BATCHES):
            x, y = batch.images.double(), batch.labels
            if norm == "linf":
                start = eps * (2 * batch.random.uniform(*x.shape[1:]).double() - 1)
            else:
                radius = eps * batch.random.uniform(1, 1, 1).double() ** (1 / x[0].numel())
                direction = batch.random.normal(*x.shape[1:]).double()
                start = radius * direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
            delta = (x + start).clamp(0, 1) - x
            for _ in range(TIMES):
                delta.requires_grad_(True)
                loss = F.cross_entropy(net.network(x + delta), y)  # pyright: ignore
                net.zero_grad()
                loss.backward()
                losses.append(float(loss.detach()))
                rate = SCHEDULE.lr * SCHEDULE.rate((step + 0.5) / STEPS)
                for name, p in net.named_parameters():
                    assert p.grad is not None
                    speed[name] = 0.9 * speed[name] + p.grad + 5e-4 * p.data
                    p.data -= rate * speed[name]
                assert delta.grad is not None
                with torch.no_grad():
                    if norm == "linf":
                        delta = (delta + eps * delta.grad.sign()).clamp(-eps, eps)
                    else:
                        flat = delta.grad.flatten(1)
                        moved = delta + eps * (flat / flat.norm(dim=1, keepdim=True)).view_as(x)
                        length = moved.flatten(1).norm(dim=1)[:, None, None, None]
                        delta = moved * (eps / length).clamp(max=1)
                    delta = (x + delta).clamp(0, 1) - x
                step += 1
    return losses


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
def test_training_is_the_paper_s_loop(norm: Norm, eps: float) -> None:
    net, twin, memory = Doubled(), Doubled(), Memory()
    fit(net, IMAGES, task(norm, eps), SCHEDULE, memory)
    expected = plain_loop(twin, norm, eps)
    assert [metrics["loss"] for _, metrics in memory.steps] == pytest.approx(expected, rel=1e-5)
    for (key, got), want in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-6), key


def test_each_batch_is_taken_so_often_and_the_schedule_counts_every_step() -> None:
    memory = Memory()
    history = fit(make_net(), IMAGES, task(), SCHEDULE, memory).history
    assert [progress.step for progress, _ in memory.steps] == list(range(1, STEPS + 1))
    assert {progress.steps for progress, _ in memory.steps} == {STEPS}
    ends = [progress.step for progress, _ in memory.steps if progress.ends_epoch]
    assert ends == [STEPS // 2, STEPS]
    assert [row["epoch"] for row in history] == [1, 2]
    assert all("val_robust" in row for row in history)
    sizes = [metrics["images"] for _, metrics in memory.steps]
    assert sizes == [size for size in [14, 14, 14] * 2 for _ in range(TIMES)]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_batch_comes_again_as_the_same_object(times: int) -> None:
    made = [make_batch(3), make_batch(4)]
    assert [id(b) for b in replayed(made, times)] == [id(b) for b in made for _ in range(times)]


def plainly(net: nn.Module, memory: Memory) -> Trained:
    return fit(net, IMAGES, task(), SCHEDULE, memory, select=True)


def held(net: nn.Module, memory: Memory) -> Trained:
    weights = prunable_weights(make_net()).items()
    hold(net, {name: keep_top(weight.abs(), weight.numel() // 2) for name, weight in weights})
    return fit(net, IMAGES, task(), SCHEDULE, memory)


def searching(net: nn.Module, memory: Memory) -> Trained:
    return fit(net, IMAGES, task(), SCHEDULE, memory, methods.get("harp")(sparsity=0.8))


@pytest.mark.parametrize("run", [plainly, held, searching])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_resumed_at_any_checkpoint_ends_in_the_same_bits(
    run: Callable[[nn.Module, Memory], Trained], every: int
) -> None:
    whole, memory = make_net(dropout=0.3), Memory(every=every)
    expected = run(whole, memory)
    # One that is wanted between replays is written when the batch is done.
    assert list(memory.saves) == list(range(TIMES, STEPS + 1, TIMES))
    for step, saved in memory.saves.items():
        resumed, later = make_net(seed=99, dropout=0.3), Memory(saved, every=every)
        assert run(resumed, later).history == expected.history, step
        assert same(snapshot(resumed), snapshot(whole)), step
        for at, (_, tensors, _) in later.saves.items():
            assert same(tensors, memory.saves[at][1]), (step, at)


@given(
    eps=st.floats(0, 1),
    norm=st.sampled_from(["linf", "l2"]),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 9),
)
@settings(max_examples=50)
def test_images_stay_in_ball_and_box_wherever_gradients_point(
    eps: float, norm: Norm, scale: float, seed: int
) -> None:
    batch, threat = make_batch(4, seed), Threat(eps, norm=norm)
    direction = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        images = moving(batch, threat)
        there = images.detach()
        assert float((threat.length(there - batch.images) - eps).max()) <= 1e-5
        assert 0.0 <= float(there.min()) <= float(there.max()) <= 1.0
        (scale * direction * images).sum().backward()


def test_the_first_replay_is_a_point_of_each_image_s_own_and_the_next_moves_by_eps() -> None:
    threat, rows = Threat(EPS), [7, 1, 4]
    whole = make_batch()
    part = Batch(whole.images[rows], whole.labels[rows], ImageRandom(5, torch.tensor(rows)))
    starts = moving(whole, threat), moving(part, threat)
    assert torch.equal(starts[0][rows], starts[1])
    assert ((starts[0] - whole.images).abs().flatten(1).amax(1) > 0).all()
    # Looked at again without a backward pass it has not moved.
    assert torch.equal(moving(whole, threat), starts[0])
    starts[0].sum().backward()
    expected = (starts[0].detach() + EPS - whole.images).clamp(max=EPS) + whole.images
    assert torch.allclose(moving(whole, threat), expected.clamp(max=1.0))


def test_a_batch_taken_once_meets_a_random_point_and_no_attack() -> None:
    net, batch = make_net(), make_batch()
    twin, again = make_net(), make_batch()
    loss = replace(task().objective, replays=1)(net, batch)
    noise = EPS * (2 * again.random.uniform(*again.images.shape[1:]) - 1)
    logits = twin((again.images + noise).clamp(0, 1))
    assert torch.allclose(loss.value, F.cross_entropy(logits, again.labels))
    assert same(snapshot(net), snapshot(twin)), "one forward pass in training mode"


def test_nothing_keeps_a_replay_s_memory_once_it_is_over() -> None:
    net, batch = make_net(), make_batch()
    gc.disable()
    try:
        leaf = moving(batch, Threat(EPS))
        gone = weakref.ref(leaf)
        F.cross_entropy(net(leaf), batch.labels).backward()
        del leaf
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["natural", "pgd", "trades", "fgsm-rs"])
def test_other_objectives_take_a_batch_once(name: str) -> None:
    assert replace(task().objective, name=name).times == 1


def test_a_student_whose_loss_takes_its_place_takes_a_batch_once() -> None:
    assert Distilled("free", Threat(EPS), teacher=make_net(), share=0.5).times == 1
