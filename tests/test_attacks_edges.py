"""Where an attack is nearly another: nothing left to attack, two classes, the ends of a range."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attack_nets import images, random_for
from linear_nets import linear
from torch import Tensor, nn

from advprune.attacks import autoattack as whole
from advprune.attacks import square_l2, zoo
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t, strongest_rivals, targeted_dlr
from advprune.attacks.autoattack import autoattack
from advprune.attacks.fab_t import fab_t
from advprune.attacks.losses import cross_entropy, dlr, margin
from advprune.attacks.nearest import Nearest, inside, where_right
from advprune.attacks.pgd import pgd, starting_point, uniform_offsets
from advprune.attacks.projections import to_plane
from advprune.attacks.spec import parse
from advprune.attacks.square import square
from advprune.errors import Refused
from advprune.types import Norm, Threat

SHAPE = (1, 4, 4)
BOX = Threat(1.0)  # everything may be reached


@pytest.fixture
def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear network, and images that it gets right."""
    net, x = linear(SHAPE, 5), images(6, SHAPE)
    return net, x, net(x).argmax(dim=1)


class Asked:
    """A model that counts the images that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.counts = net, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        return self.net(x)


WITHIN: dict[str, Callable[..., Tensor]] = {
    "apgd": partial(apgd, steps=20, restarts=3),
    "apgd_t": partial(apgd_t, steps=20, targets=3),
    "fab_t": partial(fab_t, steps=20, targets=3),
    "square": partial(square, queries=400),
}


@pytest.mark.parametrize("name", WITHIN)
def test_when_every_image_has_fallen_the_model_is_left_alone(
    name: str, case: tuple[nn.Sequential, Tensor, Tensor]
) -> None:
    net, x, y = case
    model = Asked(net)
    found = WITHIN[name](model, x, y, BOX, random_for(x))
    assert bool((net(found).argmax(dim=1) != y).all())
    assert min(model.counts) > 0, "it was asked about no image at all"
    assert len(model.counts) < 20, "it went on"


def test_images_that_are_wrong_as_they_are_stay_as_they_are(
    case: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    net, x, y = case
    for name, attack in WITHIN.items():
        assert torch.equal(attack(net, x, (y + 1) % 5, BOX, random_for(x)), x), name


def test_the_parts_of_autoattack_come_in_order_and_get_what_is_left(
    case: tuple[nn.Sequential, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = case
    told: list[tuple[str, int, dict[str, object]]] = []

    def part(name: str, breaks: int) -> Callable[..., Tensor]:
        def attack(model: nn.Module, x: Tensor, y: Tensor, *_: object, **more: object) -> Tensor:
            told.append((name, len(x), more))
            found = x.clone()
            for row in range(breaks):  # an image of another class
                found[row] = next(i for i in images_of if int(net(i[None]).argmax()) != int(y[row]))
            return found

        return attack

    images_of = images(40, SHAPE, seed=9)
    for name, breaks in (("apgd", 2), ("apgd_t", 1), ("fab_t", 3), ("square", 9)):
        monkeypatch.setattr(whole, name, part(name, breaks))
    found = autoattack(net, x, y, BOX, random_for(x), steps=7, targets=2, queries=11)
    assert bool((net(found).argmax(dim=1) != y).all())
    # After the third part no image is left, so the fourth is not asked.
    assert told == [
        ("apgd", 6, {"steps": 7}),
        ("apgd_t", 4, {"steps": 7, "targets": 2}),
        ("fab_t", 3, {"steps": 7, "targets": 2}),
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"p_init": 0.0}, r"p_init must lie in \(0, 1\], got 0"),
        ({"p_init": 1.01}, r"p_init must lie in \(0, 1\], got 1.01"),
        ({"schedule": 0}, "schedule must be at least 1, got 0"),
    ],
)
def test_a_square_that_would_do_nothing_is_refused(
    case: tuple[nn.Sequential, Tensor, Tensor], settings: dict[str, Any], said: str
) -> None:
    net, x, y = case
    with pytest.raises(Refused, match=said):
        square(net, x, y, BOX, random_for(x), **settings)
    square(net, x, y, BOX, random_for(x), queries=1, p_init=1.0, schedule=1)


# Losses ------------------------------------------------------------------------------------------


def test_losses_are_their_formulas_by_hand() -> None:
    logits, y = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0]]), torch.tensor([0])
    assert margin(logits, y).item() == -1
    assert cross_entropy(logits, y).item() == pytest.approx(
        math.log(sum(math.exp(z) for z in (4, 1, 3, 0, -2))) - 4, rel=1e-6
    )
    assert dlr(logits, y).item() == pytest.approx(-1 / (4 - 1))
    pairs = torch.tensor([[0, 3]])
    # (z_t - z_y) / (z_1 - (z_3 + z_4) / 2)
    assert targeted_dlr(logits, pairs).item() == pytest.approx(-4 / (4 - 0.5))
    # Of three classes there is no fourth to divide by.
    assert targeted_dlr(logits[:, :3], torch.tensor([[0, 1]])).item() == -3
    assert strongest_rivals(logits, y, 2).tolist() == [[2, 1]]
    assert strongest_rivals(logits, y, 9).tolist() == [[2, 1, 3, 4]]


def test_a_ratio_of_two_logits_is_refused() -> None:
    with pytest.raises(Refused, match="needs at least 3 classes, got 2; use margin"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))
    assert dlr(torch.zeros(1, 3), torch.tensor([0])).item() == 0


# Starts and steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_starts_fill_the_ball(norm: Norm) -> None:
    threat, x = Threat(0.1, norm=norm, low=-9.0, high=9.0), torch.zeros(4000, 1, 1, 2)
    offsets = uniform_offsets(threat, random_for(x), (1, 1, 2))
    assert threat.length(offsets).max() <= 0.1 + 1e-6
    # As many points below a radius as its share of the area.
    for radius in (0.03, 0.05, 0.09):
        share = float((threat.length(offsets) < radius).float().mean())
        assert share == pytest.approx((radius / 0.1) ** 2, abs=0.03)
    assert offsets.mean().abs() < 0.005


def test_starts_are_near_by_far_or_at_the_image() -> None:
    x = torch.full((50, 1, 4, 4), 0.5)
    threat = Threat(0.1)
    assert torch.equal(starting_point(x, threat, random_for(x), "none"), x)
    near = starting_point(x, threat, random_for(x), "gaussian") - x
    assert float(near.std()) == pytest.approx(0.001, rel=0.1)
    far = starting_point(x, threat, random_for(x), "uniform") - x
    assert float(far.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_on_a_line_is_that_of_the_paper(
    case: tuple[nn.Sequential, Tensor, Tensor], norm: Norm
) -> None:
    net, x, y = case
    x = 0.5 * x + 0.25  # far from the walls
    threat = Threat(0.05, norm=norm)
    (slope,) = torch.autograd.grad(margin(net(leaf := x.clone().requires_grad_()), y).sum(), leaf)
    way = slope.sign() if norm == "linf" else slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    found = pgd(
        net, x, y, threat, random_for(x), steps=1, step_size=0.02, loss=margin, start="none"
    )
    assert torch.allclose(found, x + 0.02 * way, atol=1e-6)
    # 2.5 radii in one step end at the surface.
    found = pgd(net, x, y, threat, random_for(x), steps=1, loss=margin, start="none")
    assert torch.allclose(found, x + 0.05 * way, atol=1e-6)


# Ways to a plane ---------------------------------------------------------------------------------


def test_the_way_to_a_plane_is_the_shortest_by_hand() -> None:
    x = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
    normal = torch.tensor([3.0, -1.0]).view(1, 1, 1, 2)
    gain = torch.tensor([0.8])
    linf, l2 = Threat(1.0), Threat(1.0, norm="l2")
    assert to_plane(x, normal, gain, linf).flatten().tolist() == pytest.approx([0.2, -0.2])
    assert to_plane(x, normal, gain, l2).flatten().tolist() == pytest.approx([0.24, -0.08])
    assert to_plane(x, normal, -gain, linf).flatten().tolist() == pytest.approx([-0.2, 0.2])
    # The first pixel meets the wall, and the second goes on alone.
    near = torch.tensor([0.9, 0.5]).view(1, 1, 1, 2)
    assert to_plane(near, normal, torch.tensor([0.7]), linf).flatten().tolist() == pytest.approx(
        [0.1, -0.4]
    )
    # No point of the box is far enough: to the walls.
    assert to_plane(x, normal, torch.tensor([9.0]), linf).flatten().tolist() == pytest.approx(
        [0.5, -0.5]
    )
    assert to_plane(x, 0 * normal, gain, linf).flatten().tolist() == [0, 0]


def test_only_images_that_are_right_are_searched(
    case: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    net, x, y = case
    y = torch.where(torch.arange(6) < 2, (y + 1) % 5, y)
    seen: list[int] = []

    def search(x: Tensor, y: Tensor) -> Nearest:
        seen.append(len(x))
        return Nearest(x + 1, torch.full((len(x),), 0.3))

    found = where_right(net, x, y, search)
    assert seen == [4]
    assert found.distance.tolist() == pytest.approx([0, 0, 0.3, 0.3, 0.3, 0.3])
    assert torch.equal(found.images[:2], x[:2]) and torch.equal(found.images[2:], x[2:] + 1)
    nobody = where_right(net, x, (net(x).argmax(dim=1) + 1) % 5, search)
    assert seen == [4] and nobody.distance.tolist() == [0] * 6


def test_what_a_search_found_outside_points_into_the_ball() -> None:
    """A classifier of one pixel: the further up, the more it is of the second class."""

    def model(x: Tensor) -> Tensor:
        return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], dim=1)

    x, y = torch.tensor([0.4, 0.4, 0.4]).view(3, 1, 1, 1), torch.tensor([0, 0, 0])
    found = Nearest(
        torch.tensor([0.51, 0.7, 0.4]).view(3, 1, 1, 1), torch.tensor([0.11, 0.3, math.inf])
    )
    inner = inside(model, x, y, found, Threat(0.2)).flatten().tolist()
    # Followed to the surface; drawn back to it; nothing met.
    assert inner == pytest.approx([0.6, 0.6, 0.4])


def test_a_direction_is_followed_as_a_whole() -> None:
    """To where the first pixel meets the ball, not to a corner of it."""

    def model(x: Tensor) -> Tensor:
        return torch.stack([0.5 - x.flatten(1)[:, 0], x.flatten(1)[:, 0] - 0.5], dim=1)

    x = torch.tensor([0.45, 0.4]).view(1, 1, 1, 2)
    found = Nearest(x + torch.tensor([0.06, 0.02]).view(1, 1, 1, 2), torch.tensor([0.06]))
    inner = inside(model, x, torch.tensor([0]), found, Threat(0.3))
    assert (inner - x).flatten().tolist() == pytest.approx([0.3, 0.1], abs=1e-6)


def test_the_patterns_of_square_go_both_ways() -> None:
    x, threat = torch.full((8, 2, 6, 6), 0.5), Threat(0.4, norm="l2")
    offsets = square_l2.first(x, threat, random_for(x)) - x
    assert threat.length(offsets).tolist() == pytest.approx([0.4] * 8, rel=1e-4)
    assert 0.2 < float((offsets > 0).float().mean()) < 0.8


# As people write them ----------------------------------------------------------------------------


def test_settings_for_the_library_are_what_they_read_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "make", lambda name, settings: (name, settings))
    text = "torchattacks:MIFGSM:steps=3, decay=0.5,targeted=True,random=False,norm=L2,best=nan"
    name, settings = parse(text)  # pyright: ignore
    assert name == "MIFGSM"
    assert math.isnan(settings.pop("best"))
    assert [(key, type(value), value) for key, value in settings.items()] == [
        ("steps", int, 3),
        ("decay", float, 0.5),
        ("targeted", bool, True),
        ("random", bool, False),
        ("norm", str, "L2"),
    ]


def test_what_fails_inside_a_model_is_no_lack_of_gradients() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    x = images(2, SHAPE)
    with pytest.raises(RuntimeError, match="out of order"):
        parse("torchattacks:FGSM")(broken, x, torch.tensor([0, 1]), Threat(0.1), random_for(x))
