"""On a linear classifier the nearest boundary is known: every attack must come near to it."""

from functools import partial

import pytest
import torch
from attack_nets import images, labels, random_for
from linear_nets import at_distance, linear, needed_eps
from torch import Tensor, nn

from advprune.attacks import Attack
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t
from advprune.attacks.autoattack import autoattack
from advprune.attacks.cw import cw
from advprune.attacks.fab_t import fab_t
from advprune.attacks.fgsm import fgsm
from advprune.attacks.fmn import fmn
from advprune.attacks.losses import margin
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.evaluate import overstep
from advprune.repro import ImageRandom
from advprune.types import Norm, Threat

# The radius that breaks an image, about a mean pixel of 0.06 in both norms.
NEEDED: dict[Norm, float] = {"linf": 0.06, "l2": 0.3}
# With batch sizes.
SHAPES = [((1, 4, 4), 1), ((3, 5, 5), 7), ((2, 3, 7), 4)]
ATTACKS: dict[str, Attack] = {
    "fgsm": partial(fgsm, loss=margin),
    "pgd": pgd,
    "pgd_worst": partial(pgd_worst, steps=20, restarts=1),
    "pgd_worst-margin": partial(pgd_worst, steps=20, restarts=1, loss=margin),
    "apgd": partial(apgd, steps=20),
    "apgd_t": partial(apgd_t, steps=10),
    "autoattack": partial(autoattack, steps=10, queries=10),
    "cw": partial(cw, steps=25, rounds=12, rate=0.03),
    "fab_t": partial(fab_t, steps=10),
    "fmn": partial(fmn, steps=30),
    "square": lambda *case: best_of_three(*case),
}
# Of the optimum. Smooth bumps do not add up to the noise that the weights are here.
REACH = {("square", "l2"): 3.0}
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def best_of_three(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: ImageRandom
) -> Tensor:
    """Corners: random search can end at the wrong class, in one run of a hundred."""
    if threat.norm == "l2":
        return square(model, x, y, threat, rng, queries=200)
    runs = [square(model, x, y, threat, rng.fork(f"run {n}"), queries=600) for n in range(3)]
    best = torch.stack([margin(model(run), y) for run in runs]).argmax(dim=0)
    return torch.stack(runs)[best, torch.arange(len(x))]


@both_norms
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=str)
@pytest.mark.parametrize("classes", [2, 5])
def test_attacks_come_within_a_quarter_of_the_optimum(
    norm: Norm, name: str, shape: tuple[int, int, int], count: int, classes: int
) -> None:
    net, needed = linear(shape, classes), NEEDED[norm]
    y = labels(count, classes)
    x = at_distance(net, images(count, shape), y, needed, norm)
    assert needed_eps(net, x, y, norm).sub(needed).abs().max() < 1e-5
    # The box is wide: what is tested is the ball, and images moved to a distance may leave [0, 1].
    for eps, broken in ((REACH.get((name, norm), 1.25) * needed, True), (0.99 * needed, False)):
        threat = Threat(eps, -9.0, 9.0, norm)
        adversarial = ATTACKS[name](net, x, y, threat, random_for(x))
        assert ((net(adversarial).argmax(dim=1) != y) == broken).all()
        assert overstep(adversarial, x, threat) <= 1e-6


@both_norms
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_know_that_the_box_cuts_the_ball(norm: Norm, name: str) -> None:
    """Two classes, every pixel at a wall: only the way inwards counts, and it must be found."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    signs = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
    net.get_parameter("1.weight").data = torch.stack([signs, -signs])
    # Label 0 wants even pixels at 1 and odd ones at 0; four even pixels stand at 0 already.
    x = (signs > 0).float()
    x[:8:2] = 0.0
    x, y = x.reshape(1, 1, 4, 4), torch.tensor([0])
    # The variable of CW takes many steps to come away from a wall.
    attack = cw if name == "cw" else ATTACKS[name]
    # z0 - z1 = 2 (4 - 0): the other four even and eight odd pixels can move inwards, 12 in all.
    needed = 4 / 12 if norm == "linf" else 4 / 12**0.5
    for eps, broken in ((REACH.get((name, norm), 1.25) * needed, True), (0.99 * needed, False)):
        threat = Threat(eps, norm=norm)
        adversarial = attack(net, x, y, threat, random_for(x))
        assert overstep(adversarial, x, threat) <= 1e-6
        assert bool(net(adversarial).argmax() != 0) == broken
