"""Each search is the algorithm of its paper: image by image, slowly, in double precision."""

from dataclasses import asdict
from typing import Any

import pytest
from oracles import cw as plain_cw
from oracles import fab as plain_fab
from oracles import fmn as plain_fmn
from oracles import square as plain_square
from oracles.one_image import inside
from test_attacks_by_hand import Case, ball, both_norms, same
from torch import Tensor

from advprune.attacks import cw, fab_t, fmn
from advprune.attacks.fmn import Tuning
from advprune.attacks.nearest import Nearest
from advprune.attacks.square import square
from advprune.repro import ImageRandom
from advprune.types import Norm, Threat


def agree(found: Nearest, expected: list[tuple[Tensor, float]]) -> None:
    same(found.images, [image for image, _ in expected])
    assert found.distance.tolist() == pytest.approx([d for _, d in expected], abs=1e-5)


def followed(case: Case, threat: Threat, expected: list[tuple[Tensor, float]]) -> list[Tensor]:
    """Into the ball."""
    return [
        inside(case.classify, x, int(y), image, distance, threat)
        for x, y, (image, distance) in zip(case.x, case.y, expected, strict=True)
    ]


# Nearest images ----------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize(("seed", "steps", "targets"), [(1, 8, 2), (2, 3, 9), (3, 1, 3)])
def test_fab(norm: Norm, seed: int, steps: int, targets: int) -> None:
    case, threat = Case(seed), ball(norm, 0.06)

    def plain(enough: float) -> list[tuple[Tensor, float]]:
        return case.each(
            lambda _, x, y, __: plain_fab.nearest(
                case.classify, x, y, threat, steps, targets, enough
            )
        )

    given = (case.net, case.x, case.y, threat, case.rng())
    agree(fab_t.nearest(*given, steps=steps, targets=targets), plain(0.0))
    found = fab_t.fab_t(*given, steps=steps, targets=targets)
    same(found, followed(case, threat, plain(threat.eps)))


@both_norms
@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(steps=20),
        Tuning(steps=25, loss="dlr", direction="sign", step_size=0.1, gamma=0.2, momentum=0.5),
        Tuning(steps=20, loss="cross_entropy", step_size=0.5, momentum=0.9, gamma=0.02),
        Tuning(steps=1, direction="sign"),
    ],
)
def test_fmn(norm: Norm, tuning: Tuning) -> None:
    case, threat = Case(4), ball(norm, 0.06)
    expected = case.each(
        lambda _, x, y, __: plain_fmn.nearest(case.classify, x, y, threat, **asdict(tuning))
    )
    given = (case.net, case.x, case.y, threat, case.rng())
    agree(fmn.nearest(*given, tuning=tuning), expected)
    same(fmn.fmn(*given, **asdict(tuning)), followed(case, threat, expected))


@both_norms
@pytest.mark.parametrize(
    ("seed", "steps", "rounds", "rate"), [(5, 12, 6, 0.05), (6, 8, 3, 0.2), (7, 10, 6, 0.01)]
)
def test_cw(norm: Norm, seed: int, steps: int, rounds: int, rate: float) -> None:
    case, threat = Case(seed), ball(norm, 0.06)
    expected = case.each(
        lambda _, x, y, __: plain_cw.nearest(case.classify, x, y, threat, steps, rounds, rate)
    )
    given = (case.net, case.x, case.y, threat, case.rng())
    settings: dict[str, Any] = {"steps": steps, "rounds": rounds, "rate": rate}
    agree(cw.nearest(*given, **settings), expected)
    same(cw.cw(*given, **settings), followed(case, threat, expected))


# Square ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "norm", "eps", "settings"),
    [
        ((2, 4, 3), "linf", 0.02, {"queries": 260}),
        ((2, 4, 3), "linf", 0.15, {"queries": 200, "p_init": 0.3, "schedule": 900}),
        ((1, 5, 7), "linf", 0.03, {"queries": 120, "p_init": 1.0, "schedule": 60}),
        ((1, 5, 7), "linf", 0.01, {"queries": 280, "schedule": 60}),
        ((1, 25, 36), "linf", 0.003, {"queries": 60, "p_init": 0.9}),
        ((1, 25, 36), "linf", 0.003, {"queries": 60, "p_init": 0.9, "schedule": 2000}),
        ((2, 4, 3), "l2", 0.05, {"queries": 60}),
        ((1, 17, 20), "l2", 0.01, {"queries": 30}),
        ((2, 11, 12), "l2", 0.02, {"queries": 50, "p_init": 0.5}),
        ((1, 13, 11), "l2", 0.15, {"queries": 50, "p_init": 0.2, "schedule": 500}),
    ],
)
def test_square(
    shape: tuple[int, int, int], norm: Norm, eps: float, settings: dict[str, Any]
) -> None:
    case, threat = Case(8, shape=shape), ball(norm, eps)
    queries = settings["queries"]
    p_init, schedule = settings.get("p_init", 0.8), settings.get("schedule", queries)

    def plain(_: int, x: Tensor, y: int, rng: ImageRandom) -> tuple[Tensor, int]:
        return plain_square.attack(case.classify, x, y, threat, rng, queries, p_init, schedule)

    asked = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        return case.net(images)

    expected = case.each(plain)
    found = square(counting, case.x, case.y, threat, case.rng(), **settings)
    same(found, [image for image, _ in expected])
    assert asked == len(case.x) + sum(count for _, count in expected)
