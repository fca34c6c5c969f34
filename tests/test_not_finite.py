"""A number that is not finite ends the training in the step that made it, and is never saved."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import SMALL, Runner
from torch import Tensor, nn
from toy import Memory, make_images, make_net, make_task

from advprune import method as methods
from advprune.errors import Refused
from advprune.method import Progress
from advprune.objectives import Loss, Objective
from advprune.train import Schedule, fit
from pipeline.checkpoints import Checkpoints
from pipeline.watch import Watch

SCHEDULE = Schedule(epochs=3, batch_size=16, lr=0.1)
BAD = [math.nan, math.inf, -math.inf]
Spoil = Callable[[nn.Module, float], None]


def gradient(net: nn.Module, value: float) -> None:
    grad = net.get_parameter("network.fc.weight").grad
    assert grad is not None
    grad[1, 2] = value


def weight(net: nn.Module, value: float) -> None:
    with torch.no_grad():
        net.get_parameter("network.fc.bias")[0] = value


def mean(net: nn.Module, value: float) -> None:
    net.get_buffer("network.bn2.running_mean")[3] = value


def variance(net: nn.Module, value: float) -> None:
    net.get_buffer("network.bn1.running_var")[0] = value


WHERE: dict[Spoil, tuple[str, str]] = {
    gradient: ("before", "the gradient of network.fc.weight is not finite"),
    weight: ("after", "the weight network.fc.bias is not finite"),
    mean: ("after", r"the running statistic network.bn2.running_mean is not finite"),
    variance: ("after", r"the running statistic network.bn1.running_var is not finite"),
}


def spoiling(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, spoil: Spoil, at: int, value: float
) -> None:
    """Spoil something around the optimiser's step number `at`."""
    step, count = torch.optim.SGD.step, iter(range(1, 100))

    def spoiled(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        now = next(count) == at
        if now and WHERE[spoil][0] == "before":
            spoil(net, value)
        result = step(self, *args, **kwargs)
        if now and WHERE[spoil][0] == "after":
            spoil(net, value)
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", spoiled)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("at", [1, 3, 5, 9])
@pytest.mark.parametrize("spoil", WHERE, ids=lambda f: f.__name__)
def test_training_ends_in_the_step_and_says_where(
    spoil: Spoil, at: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, memory = make_net(), Memory(every=1)
    spoiling(monkeypatch, net, spoil, at, value)
    where = f"{WHERE[spoil][1]} in epoch {(at - 1) // 3 + 1}, batch {(at - 1) % 3 + 1}; lower"
    with pytest.raises(Refused, match=where) as refusal:
        fit(net, make_images(), make_task(), SCHEDULE, memory)
    assert "\n" not in str(refusal.value)
    assert len(memory.steps) == at - 1
    assert sorted(memory.saves) == list(range(1, at))
    assert all(all_finite(tensors) for _, tensors, _ in memory.saves.values())


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("at", [1, 5])
def test_so_does_a_loss_that_is_not_finite(at: int, value: float) -> None:
    count = iter(range(1, 100))

    class Diverging(Objective):
        def __call__(self, net: nn.Module, batch: Any) -> Loss:
            loss = super().__call__(net, batch)
            return Loss(loss.value * (value if next(count) == at else 1.0), loss.correct)

    task, memory = make_task(), Memory(every=1)
    task = methods.Task(Diverging("pgd", task.objective.threat, 1), 0, task.shape)
    with pytest.raises(Refused, match=rf"the loss is .*{abs(value)} in epoch"):
        fit(make_net(), make_images(), task, SCHEDULE, memory)
    assert sorted(memory.saves) == list(range(1, at))


@pytest.mark.parametrize("name", ["hydra", "harp", "radmm"])
def test_a_search_whose_scores_are_spoiled_ends_before_they_make_a_mask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, memory = make_net(), Memory(every=1)
    method = methods.get(name)(sparsity=0.5)
    spoiled: list[str] = []

    def spoil(net: nn.Module, value: float) -> None:
        learning = [(n, p) for n, p in net.named_parameters() if p.grad is not None]
        name, parameter = next((n, p) for n, p in learning if p.grad is not None)
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = value
        spoiled.append(name)

    monkeypatch.setitem(WHERE, spoil, ("before", ""))
    spoiling(monkeypatch, net, spoil, 4, math.nan)
    with pytest.raises(Refused, match=r"the gradient of .* is not finite in epoch 2, batch 1"):
        fit(net, make_images(), make_task(), SCHEDULE, memory, method)
    assert spoiled
    assert sorted(memory.saves) == [1, 2, 3]
    assert all(all_finite(tensors) for _, tensors, _ in memory.saves.values())


def test_the_last_good_checkpoint_of_a_stage_stays(tmp_path: Path) -> None:
    runner = Runner(SMALL, tmp_path)
    for stage in ("data", "standard", "adversarial"):
        runner.build(stage)

    class Spoiling(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            super().step(progress, metrics)
            if len(metrics) and progress.step == 2 * progress.epoch_steps:
                patch.setattr(torch.optim.SGD, "step", nothing_finite)

    def nothing_finite(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(math.nan)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused, match="is not finite in"):
        runner.build("prune", Spoiling)
    (left,) = (tmp_path / "store").glob(".tmp-prune-*")
    saved = Checkpoints(left, pytest.fail).latest()
    assert saved is not None
    assert len(saved[2]) == 1, "the second epoch was still to be measured"
    assert all_finite(saved[1])
    assert runner.build("prune").metrics["sparsity"] == pytest.approx(0.9, abs=1e-3)
