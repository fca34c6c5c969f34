"""Attacks that look for the nearest misclassified image find it, and say honestly what they met."""

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from attack_nets import conv_net, digit_net, digits, images, labels, random_for
from linear_nets import at_distance, linear, needed_eps
from torch import Tensor, nn

from advprune.attacks import cw, fab_t, fmn
from advprune.attacks.fmn import Tuning
from advprune.attacks.nearest import Search
from advprune.attacks.projections import to_plane
from advprune.evaluate import overstep
from advprune.types import Norm, Threat, per_image

with warnings.catch_warnings():
    # Its import uses a part of scipy that is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from foolbox.attacks.ddn import DDNAttack
    from foolbox.attacks.fast_minimum_norm import LInfFMNAttack
    from foolbox.criteria import Misclassification
    from foolbox.models.pytorch import PyTorchModel

SEARCHES: dict[str, Search] = {
    "cw": partial(cw.nearest, steps=25, rounds=12, rate=0.03),
    "fab_t": partial(fab_t.nearest, steps=20),
    "fmn": fmn.nearest,
    "fmn-sign": partial(fmn.nearest, tuning=Tuning(direction="sign", step_size=0.3)),
}
every_search = pytest.mark.parametrize("name", SEARCHES)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def wide(norm: Norm) -> Threat:
    return Threat(1.0, -9.0, 9.0, norm)


def distances(search: Search, net: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """What the search says, after a check that it is true."""
    found = search(net, x, y, threat, random_for(x))
    met = found.distance.isfinite()
    lengths = threat.length(found.images - x)
    assert torch.equal(lengths[met], found.distance[met])
    assert torch.equal(net(found.images).argmax(dim=1) != y, met)
    assert torch.equal(found.images[~met], x[~met])
    assert overstep(found.images, x, threat.unbounded(tuple(x.shape[1:]))) <= 1e-6
    return found.distance


@both_norms
@every_search
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 5)], ids=str)
@pytest.mark.parametrize("classes", [2, 5])
def test_on_a_linear_classifier_the_nearest_boundary_is_found(
    name: str, norm: Norm, shape: tuple[int, int, int], classes: int
) -> None:
    net, y = linear(shape, classes), labels(7, classes)
    x = at_distance(net, images(7, shape), y, 0.1, norm)
    optimum = needed_eps(net, x, y, norm)
    ratio = distances(SEARCHES[name], net, x, y, wide(norm)) / optimum
    # Signs are no direction for a Euclidean distance; tau falls in steps of a tenth.
    loose = 1.6 if (name, norm) == ("fmn-sign", "l2") else 1.25 if name == "cw" else 1.06
    assert (ratio > 0.9999).all()
    assert (ratio < loose).all()


def foolbox_distances(attack: Any, net: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    model = PyTorchModel(net, bounds=(threat.low, threat.high), device="cpu")
    found = attack.run(model, x, Misclassification(y))
    return threat.length(found - x)


ORACLES = {"linf": LInfFMNAttack, "l2": DDNAttack}


@both_norms
def test_the_oracle_itself_finds_the_nearest_boundary(norm: Norm) -> None:
    net, y = linear((3, 5, 5), 2), labels(7, 2)
    x = at_distance(net, images(7, (3, 5, 5)), y, 0.1, norm)
    found = foolbox_distances(ORACLES[norm](), net.eval(), x, y, wide(norm))
    assert torch.allclose(found, needed_eps(net, x, y, norm), rtol=0.02)


@pytest.mark.parametrize("trained", [None, Threat(0.1)], ids=["standard", "robust"])
def test_fmn_finds_the_distances_of_the_reference(trained: Threat | None) -> None:
    net, split, threat = digit_net(trained), digits(), Threat(0.1)
    x, y = split.images / 255, split.labels
    ours = distances(fmn.nearest, net, x, y, threat)
    reference = foolbox_distances(ORACLES["linf"](steps=100), net, x, y, threat)
    assert ours.isfinite().all()
    assert ours.median().item() == pytest.approx(reference.median().item(), rel=0.005)
    assert (ours / reference)[ours > 0].median().item() == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("trained", [None, Threat(0.1)], ids=["standard", "robust"])
@pytest.mark.parametrize("name", ["fmn", "fab_t", "cw"])
def test_euclidean_searches_reach_as_near_as_the_reference(
    name: str, trained: Threat | None
) -> None:
    """DDN is the reference: foolbox's own FMN does not project in this norm."""
    searches: dict[str, Search] = {
        # Cross-entropy minds several classes, as it does in the reference.
        "fmn": partial(fmn.nearest, tuning=Tuning(loss="cross_entropy")),
        "fab_t": partial(fab_t.nearest, steps=30),
        "cw": cw.nearest,
    }
    net, split, threat = digit_net(trained), digits(), Threat(1.0, norm="l2")
    x, y = split.images / 255, split.labels
    ours = distances(searches[name], net, x, y, threat)
    reference = foolbox_distances(ORACLES["l2"](steps=100), net, x, y, threat)
    assert ours.isfinite().all()
    assert (ours / reference)[ours > 0].median() <= 1.02
    assert ours.median() <= 1.05 * reference.median()


@pytest.mark.parametrize("trained", [True, False])
def test_cw_comes_near_in_the_maximum_norm(trained: bool) -> None:
    """Tau has to fall, and where gradients are small the weight has to grow."""
    net = digit_net(Threat(0.1)) if trained else conv_net().eval()
    x = digits(30).images / 255 if trained else images(20)
    y = net(x).argmax(dim=1)
    ours = distances(partial(cw.nearest, rounds=12), net, x, y, Threat(0.1))
    assert (ours / distances(fmn.nearest, net, x, y, Threat(0.1))).median() < 1.25


@both_norms
@every_search
def test_a_failure_is_infinitely_far_and_an_error_is_no_distance(name: str, norm: Norm) -> None:
    """The constant classifier is perfectly robust where it is right."""
    x, y = images(6), torch.tensor([0, 1, 0, 2, 0, 1])

    def constant(images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0]) + 0.0 * images.flatten(1)[:, :4]

    found = SEARCHES[name](constant, x, y, Threat(0.1, norm=norm), random_for(x))
    assert found.distance.tolist() == [math.inf if label == 0 else 0.0 for label in y.tolist()]
    assert torch.equal(found.images, x)


@both_norms
def test_the_last_point_of_fmn_is_scored(norm: Norm) -> None:
    """On a linear classifier the first estimate of the radius is enough for its only step."""
    net, y = linear((3, 5, 5), 2), labels(7, 2)
    x = at_distance(net, images(7, (3, 5, 5)), y, 0.1, norm)
    direction = "l2" if norm == "l2" else "sign"
    search = partial(fmn.nearest, tuning=Tuning(steps=1, direction=direction))
    ratio = distances(search, net, x, y, wide(norm)) / needed_eps(net, x, y, norm)
    assert torch.allclose(ratio, torch.tensor(1.05), atol=1e-3)


@both_norms
def test_every_setting_of_fmn_changes_the_outcome(norm: Norm) -> None:

    net, x, y, threat = conv_net().eval(), images(20), labels(20, 5), Threat(0.1, norm=norm)
    default = distances(fmn.nearest, net, x, y, threat)
    for tuning in (
        Tuning(steps=30), Tuning(loss="dlr"), Tuning(loss="cross_entropy"),
        Tuning(direction="sign"), Tuning(step_size=0.05), Tuning(gamma=0.2), Tuning(momentum=0.8),
    ):  # fmt: skip
        search = partial(fmn.nearest, tuning=tuning)
        assert not torch.equal(distances(search, net, x, y, threat), default), tuning


@both_norms
def test_the_projection_is_the_nearest_point_of_plane_and_box(norm: Norm) -> None:
    """Against the optimum on a fine grid of times, and the conditions of a minimum."""
    threat = Threat(0.1, norm=norm)
    x, normal = images(200, (2, 3, 3)), images(200, (2, 3, 3), seed=1) - 0.5
    x[::3], normal[::4] = x[::3].round(), normal[::4] * (images(50, (2, 3, 3), seed=2) > 0.5)
    most = (normal * torch.where(normal > 0, 1 - x, -x)).flatten(1).sum(dim=1)
    gain = most * torch.linspace(0.0, 0.99, 200)
    offset = to_plane(x, normal, gain, threat)
    assert overstep(x + offset, x, threat.unbounded((2, 3, 3))) <= 1e-6
    assert torch.allclose((normal * offset).flatten(1).sum(dim=1), gain, atol=1e-5)
    # A pixel that could still move has moved as far as the others, in the units of its gradient.
    speed = normal.abs() if norm == "l2" else (normal != 0).float()
    room = torch.where(normal > 0, 1 - x, x)
    free = (offset.abs() < room - 1e-4) & (speed > 1e-3)
    times = offset.abs() / speed.clamp_min(1e-6)
    longest = torch.where(speed > 1e-3, times, 0.0).amax(dim=(1, 2, 3))
    assert free.any()
    assert ((times - per_image(longest)).abs()[free] <= 2e-3).all()
    # The mirror image, and what lies outside the box.
    assert torch.allclose(to_plane(1 - x, -normal, gain, threat), -offset, atol=1e-5)
    assert torch.allclose(to_plane(x, -normal, -gain, threat), offset, atol=1e-5)
    corner = to_plane(x, normal, most + 1.0, threat)
    assert torch.equal(corner, torch.where(normal > 0, 1 - x, -x) * (normal != 0))
    assert torch.equal(to_plane(x, 0 * normal, gain + 1.0, threat), torch.zeros_like(x))
