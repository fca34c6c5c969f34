"""Attacks at their edges: one pixel, a tie of two classes, no slope, the efforts by default."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attack_nets import random_for
from test_attacks_by_hand import Case, both_norms
from torch import Tensor

from advprune import attacks
from advprune.attacks import autoattack as whole
from advprune.attacks import cw, fab_t, fmn, tuning
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t, targeted_dlr
from advprune.attacks.autoattack import autoattack
from advprune.attacks.losses import dlr
from advprune.attacks.nearest import Nearest, inside
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.spec import parse
from advprune.attacks.square import square
from advprune.attacks.tuning import tune
from advprune.data import Split
from advprune.errors import Refused
from advprune.repro import generator
from advprune.types import Norm, Threat

SMALL = {"autoattack": {"queries": 5, "steps": 3}, "square": {"queries": 5}}
SHORT: dict[str, dict[str, Any]] = {"cw": {"steps": 3, "rounds": 2}, "fgsm": {}} | SMALL
MARGIN = ["apgd", "apgd_t", "autoattack", "cw", "fab_t", "fmn", "pgd_worst", "square"]
SEARCHES = {
    "cw": partial(cw.nearest, steps=3, rounds=2),
    "fab_t": partial(fab_t.nearest, steps=3),
    "fmn": partial(fmn.nearest, tuning=fmn.Tuning(steps=3)),
}


def short(name: str) -> Callable[..., Tensor]:
    return partial(attacks.get(name), **SHORT.get(name, {"steps": 3}))


class Counting:
    """A model that notes how many images it is asked about each time."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model, self.counts = model, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        return self.model(x)


def pixel(x: Tensor) -> Tensor:
    """The further above one half, the more it is of the second class."""
    return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], dim=1)


def undecided(x: Tensor) -> Tensor:
    """A tie of four classes wherever one looks, with a gradient of zero."""
    return 0.0 * x.flatten(1)[:, :1].expand(-1, 4)


def one(value: float, count: int = 1) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1, 1, 1), value), torch.zeros(count, dtype=torch.int64)


# Ties --------------------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("name", MARGIN)
def test_an_image_on_the_boundary_is_right_and_one_beyond_it_is_not(name: str, norm: Norm) -> None:
    threat, (x, y) = Threat(0.2, norm=norm), one(0.5)
    on = Counting(pixel)
    short(name)(on, x, y, threat, random_for(x))
    beyond = Counting(pixel)
    x = x + 0.1
    assert torch.equal(short(name)(beyond, x, y, threat, random_for(x)), x)
    assert len(beyond.counts) <= 3, "it was attacked"
    assert len(on.counts) > len(beyond.counts), "it was left alone"


@both_norms
@pytest.mark.parametrize("name", SEARCHES)
def test_a_tie_is_no_success_of_a_search(name: str, norm: Norm) -> None:
    x, y = one(0.4, 3)
    found = SEARCHES[name](undecided, x, y, Threat(0.2, norm=norm), random_for(x))
    assert found.distance.tolist() == [math.inf] * 3
    assert torch.equal(found.images, x)


@both_norms
def test_what_is_no_worse_does_not_replace_what_was_found(norm: Norm) -> None:
    threat, (x, y) = Threat(0.2, norm=norm), one(0.4, 2)
    for name in ("apgd", "apgd_t", "pgd_worst"):
        assert torch.equal(short(name)(undecided, x, y, threat, random_for(x)), x), name
    first = square(undecided, x, y, threat, random_for(x), queries=1)
    assert torch.equal(square(undecided, x, y, threat, random_for(x), queries=9), first)
    # Inside the ball and on its surface the margin is alike: what was found is kept, at eps too.
    for distance in (0.1, 0.2):
        found = Nearest(x + distance, torch.full((2,), distance))
        assert torch.equal(inside(undecided, x, y, found, Threat(0.2, norm=norm)), x + distance)


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_that_reaches_no_more_than_the_confidence_stays_to_the_end(count: int) -> None:
    threat, (x, y) = Threat(0.2), one(0.4, count)
    for attack, asked in (
        (partial(pgd_worst, steps=4, restarts=3), 1 + 3 * 5),
        (partial(apgd, steps=4, restarts=3), 1 + 3 * 5),
        (partial(apgd_t, steps=4, restarts=2, targets=3), 2 + 6 * 5),
    ):
        model = Counting(undecided)
        attack(model, x, y, threat, random_for(x))
        assert model.counts == [count] * asked


def test_ratios_keep_finite_where_logits_are_nearly_equal() -> None:
    logits, tiny = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64) * 1e-12, [0]
    assert dlr(logits, torch.tensor(tiny)).item() == pytest.approx(-1 / (2 + 1))
    pairs = torch.tensor([[0, 1]])
    assert targeted_dlr(logits, pairs).item() == pytest.approx(-1 / (2.5 + 1))


@both_norms
@pytest.mark.parametrize("name", attacks.names())
def test_what_an_attack_makes_it_makes_where_the_images_are(name: str, norm: Norm) -> None:
    """Whatever the default device is: on this one there are no numbers to compute with."""
    case = Case(1)
    expected = short(name)(case.net, case.x, case.y, Threat(0.1, -0.5, 1.25, norm), case.rng())
    rng = case.rng()
    with torch.device("meta"):
        found = short(name)(case.net, case.x, case.y, Threat(0.1, -0.5, 1.25, norm), rng)
    assert torch.equal(found, expected)


# Efforts -----------------------------------------------------------------------------------------

DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    pgd: {"steps": 10, "start": "uniform"},
    pgd_worst: {"steps": 50, "restarts": 2, "confidence": 0.0},
    apgd: {"steps": 100, "restarts": 1, "rho": 0.75, "confidence": 0.0},
    apgd_t: {"steps": 100, "restarts": 1, "targets": 9, "confidence": 0.0},
    fab_t.fab_t: {"steps": 100, "targets": 9},
    fab_t.nearest: {"steps": 100, "targets": 9},
    cw.cw: {"steps": 100, "rounds": 9, "rate": 0.05},
    cw.nearest: {"steps": 100, "rounds": 9, "rate": 0.05},
    fmn.fmn: {
        "steps": 100, "loss": "margin", "direction": "l2", "step_size": 1.0, "gamma": 0.05,
        "momentum": 0.0,
    },
    square: {"queries": 1000, "p_init": 0.8},
}  # fmt: skip


@pytest.mark.parametrize("attack", DEFAULTS, ids=lambda a: f"{a.__module__[17:]}.{a.__name__}")
def test_without_settings_the_effort_is_that_of_the_authors(attack: Callable[..., Any]) -> None:
    """The same images, and as often asked."""
    case = Case(4, count=3, classes=12)
    y = case.net(case.x).argmax(dim=1)
    threat = Threat(1e-3, -0.5, 1.25)
    given, stated = Counting(case.net), Counting(case.net)
    found = attack(given, case.x[:2], y[:2], threat, random_for(case.x[:2]))
    expected = attack(stated, case.x[:2], y[:2], threat, random_for(case.x[:2]), **DEFAULTS[attack])
    assert given.counts == stated.counts
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(one, other) for one, other in pairs)


def test_without_settings_autoattack_hands_on_the_efforts_of_its_authors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, dict[str, int]]] = []

    def part(name: str) -> Callable[..., Tensor]:
        def fails(model: Any, x: Tensor, *_: object, **settings: int) -> Tensor:
            told.append((name, settings))
            return x

        return fails

    for name in ("apgd", "apgd_t", "fab_t", "square"):
        monkeypatch.setattr(whole, name, part(name))
    x, y = one(0.4)
    assert torch.equal(autoattack(pixel, x, y, Threat(0.2), random_for(x)), x)
    assert told == [
        ("apgd", {"steps": 100}),
        ("apgd_t", {"steps": 100, "targets": 9}),
        ("fab_t", {"steps": 100, "targets": 9}),
        ("square", {"queries": 5000, "schedule": 10_000}),
    ]


# Tuning ------------------------------------------------------------------------------------------


def test_trials_are_drawn_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step size and gamma log-uniform, the others uniform; the least median wins."""
    tried: list[fmn.Tuning] = []

    def search(model: Any, split: Split, threat: Threat, seed: int, nearest: Any) -> Nearest:
        tried.append(nearest.keywords["tuning"])
        distance = abs(len(tried) - 7.0) + torch.tensor([0.0, 1.0, 50.0])
        return Nearest(torch.zeros(3, 1, 1, 1), distance)

    monkeypatch.setattr(tuning, "search", search)
    split = Split(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]), torch.arange(4)
    )
    result = tune(undecided, split, Threat(0.1), seed=5)
    assert [trial.tuning for trial in result.trials] == tried
    assert [trial.median for trial in result.trials] == [abs(k - 7.0) + 1 for k in range(1, 33)]
    assert result.best == result.trials[6]
    assert tried[0] == fmn.Tuning(steps=100)
    for number, drawn in enumerate(tried[1:], start=1):
        source = generator(5, "tuning", number)
        a, b, c, d, e = torch.rand(5, generator=source, dtype=torch.float64).tolist()
        assert drawn.steps == 100
        assert drawn.loss == ("margin", "dlr", "cross_entropy")[int(3 * a)]
        assert drawn.direction == ("l2", "sign")[int(2 * b)]
        assert math.log(drawn.step_size * 255 / 8) == pytest.approx(c * math.log(10 * 255 / 8))
        assert math.log(drawn.gamma / 0.01) == pytest.approx(d * math.log(30))
        assert drawn.momentum == pytest.approx(0.9 * e)


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (0.0, 1.1, "divide by 255"),
        (-0.1, 1.0, "give them before normalisation"),
        (-0.1, 1.5, "divide by 255"),
    ],
)
def test_what_to_do_with_such_images_depends_on_which_side_they_leave(
    low: float, high: float, remedy: str
) -> None:
    x = torch.tensor([low, high]).view(2, 1, 1, 1)
    with pytest.raises(Refused, match=rf"images span \[{low:g}, {high:g}\]: {remedy}"):
        parse("torchattacks:FGSM")(pixel, x, torch.tensor([0, 1]), Threat(0.1), random_for(x))


def test_the_library_attacks_a_single_image_too() -> None:
    x, y = one(0.4)
    found = parse("torchattacks:FGSM")(pixel, x, y, Threat(0.05), random_for(x))
    assert found.item() == pytest.approx(0.45)
