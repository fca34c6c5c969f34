"""Each attack is the algorithm of its paper: image by image, slowly, in double precision."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attack_nets import random_for
from oracles import apgd as plain_apgd
from oracles import pgd as plain_pgd
from oracles.one_image import Loss, cross_entropy, dlr, margin
from torch import Tensor, nn

from advprune.attacks import losses
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t
from advprune.attacks.fgsm import fgsm
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.repro import ImageRandom, seeded
from advprune.types import Norm, Threat

both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
LOW, HIGH = -0.5, 1.25  # a box of no round width, or a wall could be mistaken for another
LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


class Case:
    """A small network in double precision and images, all but the first of which it gets right."""

    def __init__(
        self,
        seed: int,
        count: int = 5,
        shape: tuple[int, int, int] = (2, 4, 3),
        classes: int = 6,
    ) -> None:
        features = math.prod(shape)
        with seeded(seed, "by hand"):
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(features, 9), nn.Tanh(), nn.Linear(9, classes)
            ).double()
            self.net.requires_grad_(False)
            self.net.get_parameter("1.weight").data *= 3.0
            self.net.get_parameter("3.weight").data *= 4.0
            self.x = LOW + (HIGH - LOW) * torch.rand(count, *shape, dtype=torch.float64)
        self.x[1, 0] = self.x[1, 0].round().clamp(LOW, HIGH)
        self.x[2, :, 0, 0], self.x[2, :, 1, 1] = LOW, HIGH  # at the walls
        if count > 3:
            self.x[3] = torch.where(self.x[3] < 0.4, LOW, HIGH)
        self.y = self.net(self.x).argmax(dim=1)
        self.y[0] = (self.y[0] + 1) % classes

    def classify(self, image: Tensor) -> Tensor:
        return self.net(image[None])[0]

    def rng(self) -> ImageRandom:
        return random_for(self.x)

    def each(self, plain: Callable[[int, Tensor, int, ImageRandom], Any]) -> list[Any]:
        """`plain` of the number, the image, the label and the stream of each image."""
        return [
            plain(i, x, int(y), self.rng().subset(torch.tensor([i])))
            for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))
        ]

    def broken(self, found: Tensor) -> int:
        return int((self.net(found).argmax(dim=1) != self.y).sum())


def same(found: Tensor, expected: list[Tensor]) -> None:
    assert torch.allclose(found, torch.stack(expected), rtol=0.0, atol=2e-6)


def ball(norm: Norm, eps: float) -> Threat:
    return Threat(eps if norm == "linf" else 3.0 * eps, LOW, HIGH, norm)


def uniform(x: Tensor, threat: Threat, rng: ImageRandom) -> Tensor:
    """A point that is uniform over the ball, cut to the box."""
    if threat.norm == "linf":
        offset = threat.eps * (2 * rng.uniform(*x.shape)[0] - 1)
    else:
        radius = threat.eps * rng.uniform(1, 1, 1)[0] ** (1 / x.numel())
        noise = rng.normal(*x.shape)[0]
        offset = radius * noise / noise.norm()
    return (x + offset).clamp(threat.low, threat.high)


# One run after another ---------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize(
    ("loss", "steps", "size", "start"),
    [("ce", 10, None, "uniform"), ("margin", 3, 0.07, "none"), ("margin", 4, 0.3, "gaussian")],
)
def test_pgd(norm: Norm, loss: str, steps: int, size: float | None, start: Any) -> None:
    case, threat = Case(1), ball(norm, 0.2)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> Tensor:
        first = x
        if start == "uniform":
            first = uniform(x, threat, rng)
        elif start == "gaussian":
            first = (x + 0.001 * rng.normal(*x.shape)[0]).clamp(LOW, HIGH)
        length = 2.5 * threat.eps / steps if size is None else size
        rises = partial(LOSSES[loss], y=y)
        return plain_pgd.last(case.classify, x, threat, first, rises, steps, length)

    settings: dict[str, Any] = {} if steps == 10 else {"steps": steps, "step_size": size}
    settings |= {} if start == "uniform" else {"start": start, "loss": losses.LOSSES[loss]}
    same(pgd(case.net, case.x, case.y, threat, case.rng(), **settings), case.each(plain))


@both_norms
@pytest.mark.parametrize("settings", [{}, {"loss": losses.margin}])
def test_fgsm(norm: Norm, settings: dict[str, Any]) -> None:
    case, threat = Case(2), ball(norm, 0.1)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> Tensor:
        rises = partial(margin if settings else cross_entropy, y=y)
        return plain_pgd.last(case.classify, x, threat, x, rises, 1, threat.eps)

    given = (case.net, case.x, case.y, threat, case.rng())
    same(fgsm(*given, **settings), case.each(plain))


@both_norms
@pytest.mark.parametrize(
    ("eps", "settings"),
    [
        (0.05, {}),
        (0.15, {"steps": 7, "restarts": 3, "loss": "dlr"}),
        (0.1, {"steps": 9, "restarts": 2, "confidence": 1.5}),
        (0.1, {"steps": 1, "restarts": 2, "confidence": math.inf}),
    ],
)
def test_pgd_worst(norm: Norm, eps: float, settings: dict[str, Any]) -> None:
    case, threat = Case(3), ball(norm, eps)
    steps, restarts = settings.get("steps", 50), settings.get("restarts", 2)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> Tensor:
        starts = [uniform(x, threat, rng.fork(f"restart {k}")) for k in range(restarts)]
        rises = partial(LOSSES[settings.get("loss", "ce")], y=y)
        confidence = settings.get("confidence", 0.0)
        return plain_pgd.worst(case.classify, x, y, threat, starts, rises, steps, confidence)

    given: dict[str, Any] = settings | (
        {"loss": losses.LOSSES[settings["loss"]]} if "loss" in settings else {}
    )
    same(pgd_worst(case.net, case.x, case.y, threat, case.rng(), **given), case.each(plain))


def runs(
    x: Tensor, threat: Threat, rng: ImageRandom, aims: list[Loss]
) -> list[tuple[Tensor, Loss]]:
    found = []
    for number, loss in enumerate(aims):
        stream = rng.fork(f"run {number}")
        if threat.norm == "l2":
            noise = stream.normal(*x.shape)[0]
        else:
            noise = 2 * stream.uniform(*x.shape)[0] - 1
        found.append((plain_apgd.on_the_surface(x, noise, threat), loss))
    return found


@both_norms
@pytest.mark.parametrize(
    ("seed", "eps", "settings"),
    [
        (4, 0.06, {}),
        (5, 0.1, {"steps": 40, "restarts": 2, "loss": "margin", "confidence": math.inf}),
        (6, 0.15, {"steps": 25, "restarts": 3, "rho": 0.4, "loss": "dlr"}),
        (9, 0.3, {"steps": 14, "rho": 0.0, "loss": "margin", "confidence": math.inf}),
        (7, 0.05, {"steps": 3, "restarts": 2, "confidence": 1.0}),
    ],
)
def test_apgd(norm: Norm, seed: int, eps: float, settings: dict[str, Any]) -> None:
    case, threat = Case(seed), ball(norm, eps)
    steps, rho = settings.get("steps", 100), settings.get("rho", 0.75)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> Tensor:
        aims = [partial(LOSSES[settings.get("loss", "ce")], y=y)] * settings.get("restarts", 1)
        starts, confidence = runs(x, threat, rng, aims), settings.get("confidence", 0.0)
        return plain_apgd.attack(case.classify, x, y, threat, starts, steps, rho, confidence)

    given: dict[str, Any] = settings | (
        {"loss": losses.LOSSES[settings["loss"]]} if "loss" in settings else {}
    )
    same(apgd(case.net, case.x, case.y, threat, case.rng(), **given), case.each(plain))


@both_norms
@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 12, "confidence": math.inf},
        {"steps": 8, "restarts": 2, "targets": 3},
        {"steps": 8, "targets": 2, "confidence": 2.0},
    ],
)
def test_apgd_t(norm: Norm, settings: dict[str, Any]) -> None:
    case, threat = Case(8), ball(norm, 0.08)

    def targeted(logits: Tensor, y: int, rival: int) -> Tensor:
        ordered = logits.sort(descending=True).values
        return (logits[rival] - logits[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> Tensor:
        order = [k for k in case.classify(x).argsort(descending=True).tolist() if k != y]
        aims: list[Loss] = [
            partial(targeted, y=y, rival=rival)
            for rival in order[: settings.get("targets", 9)]
            for _ in range(settings.get("restarts", 1))
        ]
        starts, confidence = runs(x, threat, rng, aims), settings.get("confidence", 0.0)
        return plain_apgd.attack(
            case.classify, x, y, threat, starts, settings["steps"], confidence=confidence
        )

    same(apgd_t(case.net, case.x, case.y, threat, case.rng(), **settings), case.each(plain))
