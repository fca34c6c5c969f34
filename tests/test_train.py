"""One loop trains everything: repeatable to the bit, resumable, honest about what it saw."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import EPS, Memory, make_images, make_net, make_task, same, snapshot

from advprune import method as methods
from advprune import train
from advprune.batches import Batch
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import predict
from advprune.masking import hold, prunable_weights
from advprune.masks import keep_top
from advprune.method import Task
from advprune.objectives import Loss, Objective
from advprune.train import Schedule, Trained, fit, validate
from advprune.types import Threat

SHAPE = (1, 6, 6)
IMAGES = make_images()
SCHEDULE = Schedule(epochs=3, batch_size=16, lr=0.1, warmup=0.2)
EPOCH_STEPS = 3


@dataclass(frozen=True)
class Recorder(Objective):
    """Cross-entropy on clean images that remembers every batch."""

    name: Any = "natural"
    threat: Threat = field(default_factory=lambda: Threat(EPS))
    batches: list[Batch] = field(default_factory=list)

    def __call__(self, net: nn.Module, batch: Batch) -> Loss:
        self.batches.append(batch)
        logits = net(batch.images)
        correct = (logits.argmax(1) == batch.labels).sum()
        return Loss(F.cross_entropy(logits, batch.labels), correct)


class Constant(nn.Module):
    """The cheapest network there is."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), 3)


def pixels(images: Tensor) -> list[tuple[int, ...]]:
    """Something that identifies each image."""
    return [tuple(image.flatten().mul(255).round().int().tolist()) for image in images]


Run = Callable[[nn.Module, Memory], Trained]


def plain(net: nn.Module, memory: Memory) -> Trained:
    return fit(net, IMAGES, make_task(), SCHEDULE, memory)


def selecting(net: nn.Module, memory: Memory) -> Trained:
    return fit(net, IMAGES, make_task(), SCHEDULE, memory, select=True)


def held(net: nn.Module, memory: Memory) -> Trained:
    weights = prunable_weights(make_net()).items()
    hold(net, {name: keep_top(weight.abs(), weight.numel() // 2) for name, weight in weights})
    return fit(net, IMAGES, make_task(), SCHEDULE, memory)


def searching(net: nn.Module, memory: Memory) -> Trained:
    method = methods.get("hydra")(sparsity=0.8)
    return fit(net, IMAGES, make_task(), SCHEDULE, memory, method)


def fast(net: nn.Module, memory: Memory) -> Trained:
    return fit(net, IMAGES, make_task(name="fgsm-rs"), replace(SCHEDULE, rise=1.0), memory)


every_run = pytest.mark.parametrize("run", [plain, selecting, held, searching, fast])


@every_run
def test_the_same_seed_gives_the_same_bits(run: Run) -> None:
    nets = make_net(dropout=0.3), make_net(dropout=0.3)
    memories = Memory(), Memory()
    first, second = (run(net, memory) for net, memory in zip(nets, memories, strict=True))
    assert first.history == second.history
    assert same(snapshot(nets[0]), snapshot(nets[1]))
    for step in memories[0].saves:
        assert same(memories[0].saves[step][1], memories[1].saves[step][1])


def test_another_seed_gives_other_weights() -> None:
    nets = make_net(), make_net()
    for seed, net in enumerate(nets):
        fit(net, IMAGES, make_task(seed), SCHEDULE, Memory())
    assert not same(snapshot(nets[0]), snapshot(nets[1]))


@every_run
@pytest.mark.parametrize("step", range(1, 3 * EPOCH_STEPS + 1))
def test_a_run_resumed_after_any_step_ends_in_the_same_bits(run: Run, step: int) -> None:
    whole, memory = make_net(dropout=0.3), Memory(every=1)
    expected = run(whole, memory)
    # Another network and another state of the global generator: all must come from the checkpoint.
    resumed, torch_state = make_net(seed=99, dropout=0.3), torch.get_rng_state()
    torch.rand(7)
    later = Memory(memory.saves[step], every=1)
    got = run(resumed, later)
    torch.set_rng_state(torch_state)
    assert got.history == expected.history
    assert same(snapshot(resumed), snapshot(whole))
    assert later.saves.keys() == set(range(step + 1, 3 * EPOCH_STEPS + 1))
    for later_step, (_, tensors, history) in later.saves.items():
        assert same(tensors, memory.saves[later_step][1])
        assert history == memory.saves[later_step][2]


@every_run
def test_whoever_watches_is_told_of_each_epoch_once_it_is_measured(run: Run) -> None:
    memory = Memory()
    history = run(make_net(), memory).history
    assert memory.epochs == [history[:1], history[:2], history]
    assert all("val_clean" in row for row in history)


def test_what_is_saved_does_not_change_when_training_goes_on() -> None:
    memory = Memory()
    copies: dict[int, dict[str, Tensor]] = {}

    class Copying(Memory):
        def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
            memory.save(step, tensors, history)
            copies[step] = {key: value.clone() for key, value in tensors.items()}

    fit(make_net(), IMAGES, make_task(), SCHEDULE, Copying(), select=True)
    assert sorted(copies) == [EPOCH_STEPS, 2 * EPOCH_STEPS, 3 * EPOCH_STEPS]
    assert all(same(memory.saves[step][1], copies[step]) for step in copies)


def test_the_global_generator_is_left_alone_though_dropout_draws_from_it() -> None:
    net = make_net(dropout=0.5)
    state = torch.get_rng_state()
    fit(net, IMAGES, make_task(), SCHEDULE, Memory())
    assert torch.equal(torch.get_rng_state(), state)
    without = make_net(dropout=0.0)
    fit(without, IMAGES, make_task(), SCHEDULE, Memory())
    assert not same(snapshot(net), snapshot(without))


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 9))
def test_every_image_is_seen_once_an_epoch_in_batches_of_nearly_equal_size(
    count: int, batch_size: int, seed: int
) -> None:
    images, recorder = make_images(count, 3), Recorder()
    schedule = Schedule(epochs=2, batch_size=batch_size, validate_every=0)
    fit(Constant(), images, Task(recorder, seed, SHAPE), schedule, Memory())
    steps = math.ceil(count / batch_size)
    assert len(recorder.batches) == 2 * steps
    orders = []
    for epoch in (recorder.batches[:steps], recorder.batches[steps:]):
        sizes = [len(batch.labels) for batch in epoch]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        orders.append([p for batch in epoch for p in pixels(batch.images)])
        labels = [label for batch in epoch for label in batch.labels.tolist()]
        truth = dict(zip(pixels(images.train.images / 255), images.train.labels, strict=True))
        assert sorted(orders[-1]) == sorted(truth)
        assert labels == [truth[p] for p in orders[-1]]
    if count > 10:
        assert orders[0] != orders[1]


def test_random_streams_belong_to_images_and_epochs_not_to_batches() -> None:
    def streams(batch_size: int) -> list[dict[tuple[int, ...], float]]:
        recorder = Recorder()
        schedule = Schedule(epochs=2, batch_size=batch_size, validate_every=0)
        fit(Constant(), IMAGES, Task(recorder, 0, SHAPE), schedule, Memory())
        epochs: list[dict[tuple[int, ...], float]] = [{}, {}]
        half = len(recorder.batches) // 2
        for index, batch in enumerate(recorder.batches):
            drawn = batch.random.uniform().tolist()
            epochs[index // half] |= dict(zip(pixels(batch.images), drawn, strict=True))
        return epochs

    first, second = streams(16), streams(5)
    assert first == second
    assert len(set(first[0].values())) == len(IMAGES.train)
    assert all(first[0][image] != first[1][image] for image in first[0])


def test_training_is_momentum_sgd_with_decay_at_the_rates_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spied(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spied)
    net, twin, recorder = make_net(), make_net(), Recorder()
    schedule = Schedule(epochs=3, batch_size=16, lr=0.1, momentum=0.8, weight_decay=0.01)
    fit(net, IMAGES, Task(recorder, 0, SHAPE), schedule, Memory())
    ends = [0.1 * schedule.rate(step / len(rates)) for step in range(len(rates) + 1)]
    for rate, before, after in zip(rates, ends, ends[1:], strict=False):
        assert after <= rate <= before
    # Written out: v <- 0.8 v + (g + 0.01 w), w <- w - rate v.
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    twin.train()
    for batch, rate in zip(recorder.batches, rates, strict=True):
        loss = F.cross_entropy(twin(batch.images), batch.labels)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, v, gradient in zip(twin.parameters(), velocity, gradients, strict=True):
                v.mul_(0.8).add_(gradient + 0.01 * p)
                p.sub_(rate * v)
    for key, value in snapshot(twin).items():
        assert torch.allclose(net.state_dict()[key], value, rtol=1e-4, atol=1e-6), key


def test_a_method_s_group_keeps_its_own_peak_all_along(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    step = torch.optim.SGD.step

    def spied(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spied)
    method = methods.get("harp")(sparsity=0.8, **{"rate_lr": 0.25})
    memory = Memory()
    fit(make_net(), IMAGES, make_task(), SCHEDULE, memory, method)
    fit(make_net(), IMAGES, make_task(), SCHEDULE, Memory(memory.saves[EPOCH_STEPS]), method)
    assert len(seen) == 5 * EPOCH_STEPS
    for scores, rates in seen:
        assert rates == pytest.approx(0.25 * scores)
    # And what a resumed run begins with is not what the rates had fallen to.
    assert seen[3 * EPOCH_STEPS :] == seen[EPOCH_STEPS : 3 * EPOCH_STEPS]


def test_a_network_left_in_eval_mode_is_trained_as_any_other() -> None:
    first, second = make_net(dropout=0.3), make_net(dropout=0.3).eval()
    plain(first, Memory())
    plain(second, Memory())
    assert same(snapshot(first), snapshot(second))


def test_dropout_draws_anew_in_every_step_and_epoch() -> None:
    net = make_net(dropout=0.5)
    seen: list[tuple[Tensor, Tensor]] = []
    layer = net.get_submodule("network.dropout")

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            seen.append((inputs[0] > 0, output == 0))

    layer.register_forward_hook(watch)
    schedule = Schedule(epochs=2, batch_size=len(IMAGES.train) // 2)
    fit(net, IMAGES, make_task(name="natural"), schedule, Memory())
    assert len(seen) == 4
    for i, (active, dropped) in enumerate(seen):
        for also_active, also_dropped in seen[i + 1 :]:
            agree = (dropped == also_dropped)[active & also_active]
            assert 0.4 < float(agree.double().mean()) < 0.6


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    schedule = Schedule(epochs=1, warmup=0.25)
    assert [schedule.rate(f) for f in (0.0, 0.05, 0.125)] == pytest.approx([0, 0.2, 0.5])
    assert schedule.rate(0.25) == pytest.approx(1.0)
    assert schedule.rate(0.25 + 0.75 / 4) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule.rate(0.25 + 0.75 / 2) == pytest.approx(0.5)
    assert schedule.rate(1.0) == pytest.approx(0.0)
    assert Schedule(epochs=1).rate(0.5) == pytest.approx(0.5)


def test_progress_counts_every_step() -> None:
    memory = Memory()
    fit(make_net(), IMAGES, make_task(name="natural"), SCHEDULE, memory)
    progress = [p for p, _ in memory.steps]
    assert [p.step for p in progress] == list(range(1, 3 * EPOCH_STEPS + 1))
    assert {(p.steps, p.epoch_steps) for p in progress} == {(3 * EPOCH_STEPS, EPOCH_STEPS)}
    assert progress[-1].fraction == 1.0


def test_the_history_holds_means_over_images_and_what_validation_measured() -> None:
    net, memory, recorder = make_net(), Memory(), Recorder()
    task = Task(recorder, 0, SHAPE)
    schedule = Schedule(epochs=5, batch_size=16, lr=0.05, validate_every=2)
    history = fit(net, IMAGES, task, schedule, memory).history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in history if "val_clean" in row] == [2, 4, 5]
    losses = [metrics["loss"] for _, metrics in memory.steps]
    sizes = [len(batch.labels) for batch in recorder.batches]
    for epoch, row in enumerate(history):
        part = slice(3 * epoch, 3 * epoch + 3)
        total = sum(a * b for a, b in zip(losses[part], sizes[part], strict=True))
        assert row["loss"] == pytest.approx(total / len(IMAGES.train))
        assert 0.0 <= row["train"] <= 1.0
    assert history[-1]["train"] > 0.8  # It learns.
    assert history[-1]["val_clean"] == validate(net, IMAGES.val, task)["val_clean"]
    assert "val_robust" not in history[-1]


def test_validation_measures_clean_and_under_attack_and_changes_nothing() -> None:
    net = make_net()
    fit(net, IMAGES, make_task(), SCHEDULE, Memory())
    before = snapshot(net)
    row = validate(net, IMAGES.val, make_task())
    right = predict(net, IMAGES.val.images).argmax(1) == IMAGES.val.labels
    assert row["val_clean"] == pytest.approx(float(right.double().mean()))
    assert 0.0 <= row["val_robust"] < row["val_clean"]
    assert net.training
    assert same(snapshot(net), before)
    assert validate(net, IMAGES.val, make_task()) == row
    assert validate(net, IMAGES.val, make_task(name="natural")) == {"val_clean": row["val_clean"]}


def test_validation_every_zero_epochs_is_at_the_end_alone() -> None:
    schedule = Schedule(epochs=3, batch_size=16, validate_every=0)
    history = fit(make_net(), IMAGES, make_task(), schedule, Memory()).history
    assert ["val_robust" in row for row in history] == [False, False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [1, 2, 5])
def test_a_loss_that_is_not_finite_ends_training_before_it_does_harm(
    bad: int, value: float
) -> None:
    net = make_net()
    states: list[dict[str, Tensor]] = []

    class Diverging(Recorder):
        def __call__(self, net: nn.Module, batch: Batch) -> Loss:
            loss = super().__call__(net, batch)
            states.append(snapshot(net))
            factor = value if len(self.batches) == bad else 1.0
            return Loss(loss.value * factor, loss.correct)

    epoch, batch = (bad - 1) // EPOCH_STEPS + 1, (bad - 1) % EPOCH_STEPS + 1
    where = f"the loss is {value} in epoch {epoch}, batch {batch}; lower the learning rate"
    with pytest.raises(Refused, match=where) as refusal:
        fit(net, IMAGES, Task(Diverging(), 0, SHAPE), SCHEDULE, Memory())
    assert "\n" not in str(refusal.value)
    assert len(states) == bad
    assert same(snapshot(net), states[-1])


def test_a_learning_rate_that_is_far_too_high_is_refused_and_not_trained_on() -> None:
    schedule = Schedule(epochs=20, batch_size=16, lr=1e12)
    with pytest.raises(Refused, match="lower the learning rate"):
        fit(make_net(), IMAGES, make_task(), schedule, Memory())


def scripted(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float]]) -> None:
    """Let validation find what the script says, epoch by epoch."""
    script = iter(rows)

    def scripted_validate(net: nn.Module, val: Split, task: Task) -> dict[str, float]:
        return next(script)

    monkeypatch.setattr(train, "validate", scripted_validate)


@pytest.mark.parametrize(
    ("robust", "best"),
    [
        ([0.1, 0.9, 0.5], 2),
        ([0.9, 0.1, 0.5], 1),
        ([0.1, 0.2, 0.3], 3),
        ([0.0, 0.0, 0.0], 3),
        ([0.7, 0.7, 0.2], 2),
    ],
)
def test_selection_ends_with_the_best_epoch_the_later_of_equals(
    robust: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clean accuracy points elsewhere, and does not decide.
    scripted(monkeypatch, [{"val_clean": 1 - value, "val_robust": value} for value in robust])
    net, memory = make_net(), Memory()
    selecting(net, memory)
    saved = memory.saves[best * EPOCH_STEPS][1]
    assert same(snapshot(net), {k[4:]: v for k, v in saved.items() if k.startswith("net/")})


def test_without_a_robust_measurement_clean_accuracy_selects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, [{"val_clean": value} for value in (0.2, 0.8, 0.3)])
    net, memory = make_net(), Memory()
    fit(net, IMAGES, make_task(name="natural"), SCHEDULE, memory, select=True)
    second = memory.saves[2 * EPOCH_STEPS][1]["net/network.fc.weight"]
    assert torch.equal(net.get_parameter("network.fc.weight"), second)


def test_a_resumed_run_remembers_the_best_epoch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"val_clean": 1.0, "val_robust": value} for value in (0.9, 0.5, 0.1)]
    whole, memory = make_net(), Memory()
    scripted(monkeypatch, rows)
    selecting(whole, memory)
    scripted(monkeypatch, rows[2:])
    resumed = make_net(seed=9)
    selecting(resumed, Memory(memory.saves[3 * EPOCH_STEPS]))
    assert same(snapshot(resumed), snapshot(whole))
    first = memory.saves[EPOCH_STEPS][1]["net/network.fc.weight"]
    assert torch.equal(resumed.get_parameter("network.fc.weight"), first)


def test_without_selection_the_last_epoch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [{"val_clean": 1.0, "val_robust": value} for value in (0.9, 0.5, 0.1)])
    net, memory = make_net(), Memory()
    plain(net, memory)
    assert same(
        snapshot(net),
        {k[4:]: v for k, v in memory.saves[3 * EPOCH_STEPS][1].items() if k.startswith("net/")},
    )


@pytest.mark.parametrize("select", [True, False])
def test_no_epochs_leave_the_network_as_it_is(select: bool) -> None:
    net = make_net()
    before = snapshot(net)
    trained = fit(net, IMAGES, make_task(), Schedule(epochs=0), Memory(), select=select)
    assert trained.history == []
    assert same(snapshot(net), before)


def test_pruned_weights_stay_zero_and_frozen_parameters_stay_put() -> None:
    net = make_net()
    net.get_submodule("network.bn1").requires_grad_(False)
    still = net.get_parameter("network.bn1.weight").clone()
    held(net, Memory())
    for name, weight in prunable_weights(net).items():
        assert int(torch.count_nonzero(weight)) == weight.numel() // 2, name
    assert torch.equal(net.get_parameter("network.bn1.weight"), still)
