"""The security curve: every image at the distance where the engine itself errs."""

import math

import pytest
import torch
from attack_nets import digit_net, digits
from engines import Coarse, Engine, Info
from torch import nn

from advprune.attacks.nearest import Nearest
from advprune.repro import seeded
from advprune.types import Threat
from deploy.curves import along, distances, security_curve
from deploy.replay import Targets
from deploy.suites import Settings
from deploy.verify import verify

THREAT = Threat(0.1)
SPLIT = digits(60)
FAST = Settings(steps=20, restarts=1, queries=40, fmn=60, health=10)


def linear_net() -> nn.Module:
    with seeded(2, "linear"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def targets_of(net: nn.Module, engine: Engine | None = None) -> Targets:
    return Targets({"finetuned": net}, {"fp32": engine or Engine(net)}, SPLIT, THREAT, 512)


def test_the_curve_meets_the_verdicts() -> None:
    net = digit_net(THREAT)
    found = verify({"finetuned": net}, {"fp32": Engine(net)}, SPLIT, THREAT, "d", FAST)
    curve = found.curve["engines"]["fp32"]
    eps = found.curve["eps"]
    verdicts = found.verdicts["fp32"]
    assert eps[0] == 0.0
    assert eps[30] == THREAT.eps
    assert eps[-1] == pytest.approx(2 * THREAT.eps)
    assert curve["accuracy"][0] == sum(verdicts["clean"]) / 60
    assert curve["accuracy"][30] == sum(verdicts["worst"]) / 60
    assert curve["accuracy"] == sorted(curve["accuracy"], reverse=True)
    assert curve["accuracy"][-1] < curve["accuracy"][30] < curve["accuracy"][0]
    survivors = [d is None or d > THREAT.eps for d in curve["distances"]]
    assert survivors == verdicts["worst"]


def test_the_band_is_that_of_dvoretzky_kiefer_and_wolfowitz() -> None:
    spread = torch.linspace(0.001, 0.2, 400, dtype=torch.float64)
    curve = security_curve({"fp32": spread}, THREAT)["engines"]["fp32"]
    half = math.sqrt(math.log(2 / 0.05) / 800)
    for low, middle, high in zip(curve["low"], curve["accuracy"], curve["high"], strict=True):
        assert low == pytest.approx(max(middle - half, 0))
        assert high == pytest.approx(min(middle + half, 1))


def test_the_band_holds_the_whole_curve_as_often_as_it_says() -> None:
    """2,000 samples of 100 uniform distances: the true curve leaves the band in about 5 %."""
    generator = torch.Generator().manual_seed(0)
    left = 0
    for _ in range(2000):
        sample = 0.2 * torch.rand(100, generator=generator, dtype=torch.float64)
        curve = security_curve({"e": sample}, THREAT)
        truth = 1 - torch.tensor(curve["eps"], dtype=torch.float64) / 0.2
        low, high = (torch.tensor(curve["engines"]["e"][end]) for end in ("low", "high"))
        left += bool(((truth < low - 1e-9) | (truth > high + 1e-9)).any())
    assert 0.01 * 2000 < left < 0.05 * 2000


def test_a_search_that_fails_leaves_an_image_infinitely_far() -> None:
    targets = targets_of(digit_net(THREAT))
    none = Nearest(targets.x, torch.full((60,), math.inf))
    line = along(targets, "fp32", none)
    assert line.isinf().all()
    found = distances(targets, {}, {"fmn": {"fp32": line}})["fp32"]
    right = targets.survivors(targets.clean)["fp32"]
    assert torch.equal(found, torch.where(right, math.inf, 0.0).double())
    plain = security_curve({"fp32": found}, THREAT)["engines"]["fp32"]
    assert plain["distances"] == [None if flag else 0.0 for flag in right.tolist()]


def test_distances_are_where_the_engine_errs_not_its_twin() -> None:
    net = digit_net(THREAT)
    found = {}
    for name, engine in (("same", Engine(net)), ("coarse", Coarse(net, Info(precision="int8")))):
        verification = verify({"finetuned": net}, {"fp32": engine}, SPLIT, THREAT, "d", FAST)
        per_image = verification.curve["engines"]["fp32"]["distances"]
        found[name] = [math.inf if d is None else d for d in per_image]
    assert found["same"] != found["coarse"]


def test_of_a_linear_network_the_distances_are_known() -> None:
    net = linear_net()
    weight = net.get_parameter("1.weight")
    labels = net(SPLIT.images / 255).argmax(dim=1)
    split = type(SPLIT)(SPLIT.images, labels, SPLIT.indices)
    threat = Threat(0.2)
    found = verify({"finetuned": net}, {"fp32": Engine(net)}, split, threat, "d", FAST)
    measured = found.curve["engines"]["fp32"]["distances"]
    x, direction = SPLIT.images.flatten(1) / 255, weight[1] - weight[0]
    with torch.no_grad():
        for row, got in enumerate(measured):
            sign = 1.0 if labels[row] == 0 else -1.0
            low, high = 0.0, 1.0
            for _ in range(40):  # where the box lets the margin fall to zero
                middle = (low + high) / 2
                moved = (x[row] + middle * sign * direction.sign()).clamp(0, 1)
                logits = net[1](moved[None])[0]  # pyright: ignore
                low, high = (low, middle) if logits.argmax() != labels[row] else (middle, high)
            assert got is None or got >= high - 1e-4
            if got is not None and high < 0.15:
                assert got <= 1.25 * high + 1e-3
