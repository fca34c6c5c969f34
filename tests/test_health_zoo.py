"""Every network that only looks robust is found out, and none that is honest is called invalid."""

from functools import cache

import pytest
from attack_nets import digit_net, digits
from engines import Engine
from masked_nets import MASKED, SOUND, THREAT
from torch import nn

from advprune.repro import seeded
from deploy.suites import Settings
from deploy.verify import Verification, verify

SETTINGS = Settings(steps=20, restarts=1, queries=200, fmn=20, health=100, seed=1)
IDS = {f"H{number}" for number in range(1, 26)}


@cache
def evaluated(name: str) -> Verification:
    net: nn.Module = (MASKED | SOUND)[name]()
    # Its own answers are what an engine gives; draws are the model's own affair, and repeatable.
    with seeded(3, name):
        twins = {"standard": digit_net(), "finetuned": net}
        return verify(twins, {"fp32": Engine(net)}, digits(100), THREAT, "d", SETTINGS)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_network_is_flagged(name: str) -> None:
    statuses = {check.status for check in evaluated(name).health}
    assert statuses - {"OK"}, "nothing was noticed"
    assert "INVALID" in statuses


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_network_is_never_invalid(name: str) -> None:
    verification = evaluated(name)
    assert [vars(check) for check in verification.invalid] == []
    assert {check.id for check in verification.health} == IDS


def test_the_headline_of_a_masked_network_is_that_of_its_strongest_attack() -> None:
    """Transfer and Square find what gradients cannot: the number is not far off either."""
    masked, honest = evaluated("rounded activations"), evaluated("plain")
    direct = masked.verdicts["fp32"]["pgd-ce@finetuned"]
    worst = masked.verdicts["fp32"]["worst"]
    assert sum(direct) > 60
    assert sum(worst) < sum(direct) / 2
    assert sum(worst) <= sum(honest.verdicts["fp32"]["worst"]) + 40
