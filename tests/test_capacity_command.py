"""Promise: `advprune plan --gpus N --images M` estimates a recipe's training, and makes nothing."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import advprune, refusal
from torch import nn

from pipeline.capacity import LINKS, Traffic, step_traffic
from pipeline.options import PLAN_OPTIONS
from pipeline.probe import Probe, trainings
from pipeline.resolve import resolve
from pipeline.stages.data import load_images

pytest_plugins = ["bad_input_fixtures"]

# What is counted --------------------------------------------------------------------------------


def test_a_step_of_a_recipe_is_counted() -> None:
    """Against a list of the network's layers, each asked once by PGD-AT and twice by TRADES."""
    recipe, _ = resolve({"attack_steps": 1, "model": "digits_resnet"}, environment={})
    probe = Probe(recipe, load_images(recipe))
    net = probe._net
    channels = [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    numbers = sum(p.numel() for p in net.parameters())
    objective = recipe.robust_objective(recipe.adversarial)

    def traffic(name: str = "pgd", **changes: object) -> Traffic:
        training = recipe.adversarial.model_copy(update=changes)
        return probe.traffic(replace(objective, name=name), training)

    assert len(channels) > 5
    assert traffic() == step_traffic(numbers, channels)
    assert traffic("trades") == step_traffic(numbers, channels * 2)
    assert traffic(accumulate=2) == step_traffic(numbers, channels * 2)
    assert traffic(sync_bn=False) == step_traffic(numbers, [], channels)
    # Far more than half of it are gradients.
    assert 4 * numbers < traffic().payload < 1.1 * 4 * numbers


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ({"method": "harp"}, ["standard", "adversarial", "prune", "finetune", "quantize"]),
        ({"method": "magnitude", "quantize.how": "ptq"}, ["standard", "adversarial", "finetune"]),
    ],
)
def test_stages_that_train_nothing_are_left_out(words: dict, names: list[str]) -> None:
    recipe, _ = resolve(words, environment={})
    assert list(trainings(recipe)) == names


# The command ------------------------------------------------------------------------------------

QUICK = ("--set", "attack_steps=1", "--set", "threads=1")


def test_the_command_says_what_it_assumes(empty_folder: Path) -> None:
    words = ("plan", *QUICK, "--gpus", "4", "--images", "6400", "--link", "25gbe")
    shown = advprune(*words)
    assert shown.code == 0
    rows = [line.split()[0] for line in shown.out.splitlines()[2:8]]
    assert rows == ["standard", "adversarial", "prune", "finetune", "quantize", "total"]
    for word in ("4 GPUs, 6,400 images", "25gbe: 3.125 GB/s", "not in it", "1 of 4 GPUs"):
        assert word in shown.out
    assert all(len(line) <= 120 for line in shown.out.splitlines()[:8])

    document = advprune(*words, "--json").json
    stages = {stage["name"]: stage for stage in document["stages"]}
    assert list(stages) == rows[:-1]
    epochs = {"standard": 4, "adversarial": 12, "prune": 12, "finetune": 15, "quantize": 4}
    assert {name: stage["steps"] for name, stage in stages.items()} == {
        name: 100 * count for name, count in epochs.items()
    }
    for name in ("seconds", "sent", "steps"):
        every = math.fsum(stage[name] for stage in stages.values())
        assert document["total"][name] == pytest.approx(every)
    assert document["link"]["rate"] == 3.125e9
    assert list(empty_folder.iterdir()) == []


def test_one_gpu_is_the_training_that_there_is(empty_folder: Path) -> None:
    document = advprune("plan", *QUICK, "--gpus", "1", "--json").json
    assert document["images"] == len(load_images(resolve({}, environment={})[0]).train)
    assert document["total"]["sent"] == 0.0
    assert document["total"]["efficiency"] == 1.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gpus", "0"), "--gpus 0"),
        (("--images", "-3"), "--images -3"),
        (("--link", "string"), "--link string"),
        (("--gpus", "100"), "standard.batch_size=100 or more"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    words: tuple[str, ...], says: str, empty_folder: Path
) -> None:
    assert says in refusal(advprune("plan", *QUICK, *words), 2)


def test_every_link_is_offered() -> None:
    option = next(option for option in PLAN_OPTIONS if option.name == "link")
    assert option.complete is not None
    assert option.complete("") == list(LINKS)
    assert all(name in option.help for name in LINKS)
