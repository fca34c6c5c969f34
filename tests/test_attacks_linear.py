"""On a linear classifier the nearest boundary is known: every attack must come near to it."""

from functools import partial

import pytest
import torch
from attack_nets import images, labels, random_for
from torch import Tensor, nn

from advprune.attacks import Attack
from advprune.attacks.fgsm import fgsm
from advprune.attacks.losses import margin
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.repro import ImageRandom, seeded
from advprune.types import Threat

NEEDED = 0.06
SHAPES = [(1, 4, 4), (3, 5, 5), (2, 3, 7)]
ATTACKS: dict[str, Attack] = {
    "fgsm": partial(fgsm, loss=margin),
    "pgd": pgd,
    "pgd_worst": partial(pgd_worst, steps=20, restarts=1),
    "pgd_worst-margin": partial(pgd_worst, steps=20, restarts=1, loss=margin),
    "square": lambda *case: best_of_three(*case),
}


def best_of_three(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: ImageRandom
) -> Tensor:
    """Random search can end at the wrong class: about one image in a hundred, in one run."""
    runs = [square(model, x, y, threat, rng.fork(f"run {n}"), queries=600) for n in range(3)]
    best = torch.stack([margin(model(run), y) for run in runs]).argmax(dim=0)
    return torch.stack(runs)[best, torch.arange(len(x))]


def linear(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    with seeded(1, "linear", classes):
        features = shape[0] * shape[1] * shape[2]
        net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    # Confident, as trained networks are: else cross-entropy minds classes that are far away.
    net.get_parameter("1.weight").data *= 50
    return net


def needed_eps(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Hoelder: moving all pixels by eps changes w.x by at most eps ||w||_1."""
    weight, logits = net.get_parameter("1.weight").detach(), net(x).detach()
    own = logits.gather(1, y[:, None])
    gaps = (own - logits) / (weight[y][:, None] - weight[None]).abs().sum(dim=2)
    return gaps.scatter(1, y[:, None], float("inf")).amin(dim=1)


def at_distance(net: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Images of the labels y whose distance to the boundary is exactly eps: bisection on a line."""
    weight = net.get_parameter("1.weight").detach()
    inside = x.new_zeros(len(x))
    direction = (weight[y] - weight.mean(dim=0)).sign().reshape(x.shape)
    low, high = inside - 3, inside + 3
    for _ in range(60):
        middle = (low + high) / 2
        far = needed_eps(net, x + middle[:, None, None, None] * direction, y) > eps
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return x + high[:, None, None, None] * direction


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("classes", [2, 5])
def test_attacks_come_within_a_quarter_of_the_optimum(
    name: str, shape: tuple[int, int, int], count: int, classes: int
) -> None:
    net = linear(shape, classes)
    y = labels(count, classes)
    x = at_distance(net, images(count, shape), y, NEEDED)
    assert needed_eps(net, x, y).sub(NEEDED).abs().max() < 1e-5
    # The box is wide: what is tested is the ball, and images moved to a distance may leave [0, 1].
    for eps, broken in ((1.25 * NEEDED, True), (0.99 * NEEDED, False)):
        adversarial = ATTACKS[name](net, x, y, Threat(eps, -9.0, 9.0), random_for(x))
        assert ((net(adversarial).argmax(dim=1) != y) == broken).all()
        assert (adversarial - x).abs().max() <= eps + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_know_that_the_box_cuts_the_ball(name: str) -> None:
    """Two classes, every pixel at a wall: only the way inwards counts, and it must be found."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    signs = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
    net.get_parameter("1.weight").data = torch.stack([signs, -signs])
    # Label 0 wants even pixels at 1 and odd ones at 0; four even pixels stand at 0 already.
    x = (signs > 0).float()
    x[:8:2] = 0.0
    x, y = x.reshape(1, 1, 4, 4), torch.tensor([0])
    # z0 - z1 = 2 (4 - 0): the other four even and eight odd pixels can move inwards, 12 in all.
    for eps, broken in ((1.25 * 4 / 12, True), (0.99 * 4 / 12, False)):
        adversarial = ATTACKS[name](net, x, y, Threat(eps), random_for(x))
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert bool(net(adversarial).argmax() != 0) == broken
