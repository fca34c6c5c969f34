"""A survey sums what a method says of each weight, in float64, batch by batch, and can go on."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from toy import Memory, make_images, make_net, make_task, same, snapshot

from advprune.batches import Batch, batches
from advprune.card import Card
from advprune.data import as_float
from advprune.masking import prunable_weights
from advprune.method import PruningMethod, State, Task, get
from advprune.survey import survey
from advprune.types import Masks

IMAGES = make_images(train=45)
TASK = make_task()
CARD = Card("Probe", "none", 2000, "looks", ("nothing",))


class Probe(PruningMethod):
    """Says what it is told to, and remembers what it saw."""

    card: ClassVar[Card] = CARD
    wanted: int | None = None
    as_they_are: bool = False

    @property
    def augmented(self) -> bool:
        return not self.as_they_are

    def batches_needed(self, count: int) -> int:
        return count if self.wanted is None else self.wanted

    def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        modes = {module.training for module in net.modules()}
        _SEEN.append({"batch": batch, "task": task, "modes": modes, "draw": torch.rand(2)})
        value = float(len(_SEEN))
        return {name: torch.full_like(w, 0.1 * value) for name, w in prunable_weights(net).items()}

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return {}


_SEEN: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    _SEEN.clear()


def surveyed(method: Probe, memory: Memory | None = None, batch_size: int = 4) -> State:
    return survey(make_net(), IMAGES, TASK, batch_size, memory or Memory(), method).state


def test_scores_are_summed_in_float64_by_the_name_of_the_weight() -> None:
    sums = surveyed(Probe())
    shapes = {f"scores/{name}": w.shape for name, w in prunable_weights(make_net()).items()}
    assert {key: value.shape for key, value in sums.items()} == shapes
    count = math.ceil(45 / 4)
    # What float32 says of a tenth of each number, added without any further loss.
    exact = sum(float(torch.tensor(0.1 * k)) for k in range(1, count + 1))
    for value in sums.values():
        assert value.dtype == torch.float64
        assert value.unique().tolist() == pytest.approx([exact], rel=1e-15)
    assert exact != float(sum(torch.tensor(0.1 * k) for k in range(1, count + 1)))


@pytest.mark.parametrize("batch_size", [4, 10, 45, 100])
def test_a_survey_reads_the_first_epoch_of_training(batch_size: int) -> None:
    surveyed(Probe(), batch_size=batch_size)
    expected = list(batches(IMAGES, TASK.seed, 0, math.ceil(45 / batch_size)))
    assert len(_SEEN) == len(expected)
    for seen, batch in zip(_SEEN, expected, strict=True):
        assert torch.equal(seen["batch"].images, batch.images)
        assert torch.equal(seen["batch"].labels, batch.labels)
        assert torch.equal(seen["batch"].random.uniform(2), batch.random.uniform(2))
        assert seen["task"] == TASK
    # Every batch draws for itself, whatever was drawn before.
    assert len(torch.stack([seen["draw"] for seen in _SEEN]).unique(dim=0)) == len(_SEEN)


@pytest.mark.parametrize("wanted", [1, 3])
def test_a_method_reads_as_many_batches_as_it_needs_of_the_same_pass(wanted: int) -> None:
    memory = Memory()
    surveyed(Probe(wanted=wanted), memory)
    first = list(batches(IMAGES, TASK.seed, 0, math.ceil(45 / 4)))[:wanted]
    got = [seen["batch"].labels for seen in _SEEN]
    assert all(torch.equal(a, b.labels) for a, b in zip(got, first, strict=True))
    progress = [step for step, _ in memory.steps]
    assert [p.step for p in progress] == list(range(1, wanted + 1))
    assert progress[-1].fraction == 1.0


def test_a_method_may_ask_for_the_images_as_they_are() -> None:
    images = replace(make_images(train=24), augment="crop-flip")
    known = {tuple(image.flatten().tolist()) for image in as_float(images.train.images)}
    for method, plain in ((Probe(as_they_are=True), True), (Probe(), False)):
        _SEEN.clear()
        survey(make_net(), images, TASK, 8, Memory(), method)
        shown = [tuple(i.flatten().tolist()) for seen in _SEEN for i in seen["batch"].images]
        assert len(shown) == 24
        assert all(image in known for image in shown) == plain


@pytest.mark.parametrize("resumed_at", [2, 6, 12])
def test_a_resumed_survey_goes_on_after_the_batches_that_are_done(resumed_at: int) -> None:
    memory, later = Memory(), Memory()
    expected = surveyed(Probe(), memory)
    whole = [(seen["batch"].labels, seen["draw"]) for seen in _SEEN]
    _SEEN.clear()
    _SEEN.extend([{}] * resumed_at)  # The probe says what the number of the batch is.
    later.saved = memory.saves[resumed_at]
    got = surveyed(Probe(), later)
    assert same(got, expected)
    rest = [(seen["batch"].labels, seen["draw"]) for seen in _SEEN[resumed_at:]]
    assert len(rest) == 12 - resumed_at
    for (labels, draw), (labels_before, draw_before) in zip(rest, whole[resumed_at:], strict=True):
        assert torch.equal(labels, labels_before)
        assert torch.equal(draw, draw_before)
    assert [progress.step for progress, _ in later.steps] == list(range(resumed_at + 1, 13))


def test_about_ten_checkpoints_are_left_over_the_pass_each_as_it_was() -> None:
    memory = Memory()
    surveyed(Probe(), memory, batch_size=1)
    assert sorted(memory.saves) == [5, 10, 15, 20, 25, 30, 35, 40, 45]
    # A checkpoint does not change with what is summed after it.
    for done, (step, tensors, history) in memory.saves.items():
        assert (step, history) == (done, [])
        summed = float(tensors["scores/network.fc.weight"][0, 0])
        assert summed == pytest.approx(0.1 * done * (done + 1) / 2, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_in_eval_mode_meanwhile_and_each_part_ends_in_the_mode_it_had(
    training: bool,
) -> None:
    net = make_net(dropout=0.5).train(training)
    net.get_submodule("network.bn2").train(not training)
    modes = {name: module.training for name, module in net.named_modules()}
    before = snapshot(net)
    survey(net, IMAGES, TASK, 10, Memory(), Probe())
    assert all(seen["modes"] == {False} for seen in _SEEN)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert same(snapshot(net), before)


def test_a_method_that_does_not_survey_says_so() -> None:
    with pytest.raises(NotImplementedError, match="magnitude does not survey"):
        survey(make_net(), IMAGES, TASK, 10, Memory(), get("magnitude")())
