"""Tuning FMN: a search that is seeded, honest about failures, and never worse than the default."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from attack_nets import digit_net, digits, random_for
from torch import Tensor, nn

from advprune.attacks import fmn
from advprune.attacks.fmn import Tuning
from advprune.attacks.tuning import Tuned, tune
from advprune.data import Split, load
from advprune.errors import Refused
from advprune.types import Threat

THREAT = Threat(0.1)


@cache
def validation() -> Split:
    val = load("digits", data_dir=Path("unused")).val
    return Split(val.images[:60], val.labels[:60], val.indices[:60])


@cache
def tuned() -> Tuned:
    return tune(digit_net(THREAT), validation(), THREAT, seed=0, trials=6)


def median(net: nn.Module, split: Split, tuning: Tuning) -> float:
    """Over the images that the network gets right."""
    x, y = split.images / 255, split.labels
    found = fmn.nearest(net, x, y, THREAT, random_for(x), tuning=tuning)
    return found.distance[net(x).argmax(dim=1) == y].median().item()


def test_the_first_trial_is_the_default_and_the_best_is_the_least() -> None:
    trials = tuned().trials
    assert len(trials) == 6
    assert trials[0].tuning == Tuning()
    assert tuned().best.median == min(trial.median for trial in trials)
    assert tuned().best in trials
    assert len({trial.tuning for trial in trials}) == 6
    assert tuned().best.median < trials[0].median


def test_medians_are_those_of_the_images_that_are_right() -> None:
    """An image that is wrong anyhow says nothing of a setting, least of all a distance of zero."""
    labels = validation().labels.clone()
    labels[10:50] = (labels[10:50] + 1) % 10
    mostly_wrong = Split(validation().images, labels, validation().indices)
    result = tune(digit_net(THREAT), mostly_wrong, THREAT, seed=0, trials=3)
    assert all(trial.median > 0 for trial in result.trials)
    for trial in result.trials:
        assert median(digit_net(THREAT), mostly_wrong, trial.tuning) == trial.median


def test_what_was_tuned_serves_images_that_it_was_not_tuned_on() -> None:
    net = digit_net(THREAT)
    assert median(net, digits(), tuned().best.tuning) < 1.01 * median(net, digits(), Tuning())


def test_draws_depend_on_the_seed_and_the_trial_alone() -> None:
    fewer = tune(digit_net(THREAT), validation(), THREAT, seed=0, trials=2)
    assert fewer.trials == tuned().trials[:2]
    other = tune(digit_net(THREAT), validation(), THREAT, seed=1, trials=2)
    assert other.trials[0] == fewer.trials[0]
    assert other.trials[1].tuning != fewer.trials[1].tuning


class Constant(nn.Module):
    """Sure of class 0 whatever it sees: every attack fails where that is right."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(self.classes)[0] + 0.0 * x.flatten(1)[:, : self.classes]


@pytest.mark.parametrize("classes", [2, 10])
def test_a_failure_is_no_success(classes: int) -> None:
    """Two classes have no ratio of logits, and no trial asks for one."""
    split = validation()
    binary = Split(split.images, split.labels.clamp(max=1), split.indices)
    result = tune(Constant(classes), binary, THREAT, seed=0, trials=30, steps=2)
    assert [trial.median for trial in result.trials] == [math.inf] * 30
    assert result.best.tuning == Tuning(steps=2)
    drawn = {trial.tuning.loss for trial in result.trials[1:]}
    assert drawn == {"margin", "cross_entropy"} | ({"dlr"} if classes > 2 else set())
    assert {trial.tuning.direction for trial in result.trials} == {"l2", "sign"}
    assert all(8 / 255 <= trial.tuning.step_size <= 10 for trial in result.trials)
    assert all(0.0 <= trial.tuning.momentum < 0.9 for trial in result.trials)
    assert all(0.01 <= trial.tuning.gamma <= 0.3 for trial in result.trials)


def test_a_tuning_that_would_mean_nothing_is_refused() -> None:
    net, split = digit_net(THREAT), validation()
    with pytest.raises(Refused, match="trials must be at least 1, got 0"):
        tune(net, split, THREAT, seed=0, trials=0)
    with pytest.raises(Refused, match="steps must be at least 1, got 0"):
        tune(net, split, THREAT, seed=0, steps=0)
    wrong = Split(split.images, torch.full_like(split.labels, 3), split.indices)
    with pytest.raises(Refused, match="wrong on every validation image"):
        tune(Constant(10), wrong, THREAT, seed=0)
