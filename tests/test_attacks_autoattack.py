"""AutoAttack and its parts against a port of the authors' code, verdict by verdict."""

import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from attack_nets import digit_net, digits, images, labels, random_for
from linear_nets import linear, needed_eps
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from advprune.attacks import fab_t, square_l2
from advprune.attacks.apgd import apgd
from advprune.attacks.autoattack import autoattack
from advprune.attacks.losses import LOSSES
from advprune.attacks.square import square
from advprune.data import load
from advprune.evaluate import overstep
from advprune.types import Classifier, Norm, Threat, per_image

NORMS: dict[Norm, Literal["Linf", "L2"]] = {"linf": "Linf", "l2": "L2"}
ROBUST = Threat(0.1)
THREATS = [
    pytest.param(None, Threat(0.06), id="standard-linf"),
    pytest.param(None, Threat(0.35, norm="l2"), id="standard-l2"),
    pytest.param(ROBUST, Threat(0.13), id="robust-linf"),
    pytest.param(ROBUST, Threat(0.5, norm="l2"), id="robust-l2"),
]


def robust(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return net(x).argmax(dim=1) == y


def reference(
    net: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int = 100, queries: int = 5000
) -> Tensor:
    """bool (N,): right after the standard version of pyautoattack."""
    whole = AutoAttack(net, eps=threat.eps, norm=NORMS[threat.norm], seed=0)
    for part in (whole.apgd, whole.apgd_targeted, whole.fab):
        part.n_iter = steps
    for part in (whole.apgd, whole.apgd_targeted):
        part.n_iter_2, part.n_iter_min, part.size_decr = (
            max(int(share * steps), 1) for share in (0.22, 0.06, 0.03)
        )
    whole.square.n_queries = queries
    # It seeds the global generator, and warns of zero gradients and of what it thinks is random.
    tracer = sys.gettrace()  # which it takes away: of a run that measures coverage, say
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = whole.run_standard_evaluation(x, y, batch_size=len(x))
    sys.settrace(tracer)
    return robust(net, found, y)


@pytest.mark.parametrize(("trained", "threat"), THREATS)
def test_verdicts_are_those_of_the_reference(trained: Threat | None, threat: Threat) -> None:
    net, split = digit_net(trained), digits(80)
    x, y = split.images / 255, split.labels
    adversarial = autoattack(net, x, y, threat, random_for(x), steps=15, queries=50)
    assert overstep(adversarial, x, threat) <= 1e-6
    ours, theirs = robust(net, adversarial, y), reference(net, x, y, threat, 15, 50)
    assert 0.4 < theirs.double().mean() < 0.8
    # Random starts and random search: an image at the edge may go either way.
    assert (ours != theirs).sum() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "threat"), THREATS)
def test_verdicts_are_those_of_the_reference_in_full(
    trained: Threat | None, threat: Threat, record_property: Callable[[str, object], None]
) -> None:
    """1,000 images at the authors' effort; seen in training or not does not matter here."""
    data, net = load("digits", data_dir=Path("unused")), digit_net(trained)
    parts = (data.test, data.val, data.calib, data.train)
    x = torch.cat([part.images for part in parts])[:1000] / 255
    y = torch.cat([part.labels for part in parts])[:1000]
    ours = robust(net, autoattack(net, x, y, threat, random_for(x)), y)
    theirs = reference(net, x, y, threat)
    missed, gained = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    record_property("only the reference broke", missed)
    record_property("only ours broke", gained)
    assert missed + gained <= 3, f"{missed} broken by the reference only, {gained} by ours only"


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("trained", "threat"), THREATS)
def test_apgd_from_the_same_start_is_the_reference(
    trained: Threat | None, threat: Threat, loss: str
) -> None:
    net, split = digit_net(trained), digits(60)
    x, y = split.images / 255, split.labels
    stream = random_for(x).fork("run 0")
    noise = 2 * stream.uniform(1, 8, 8) - 1 if threat.norm == "linf" else stream.normal(1, 8, 8)
    start = (x + threat.eps * noise / per_image(threat.length(noise) + 1e-12)).clamp(0, 1)
    right = robust(net, x, y)
    theirs = APGDAttack(net, eps=threat.eps, norm=NORMS[threat.norm], loss=loss, device="cpu")
    theirs.init_hyperparam(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, accurate, _, found = theirs.attack_single_run(x[right], y[right], start[right])
    assert 0.3 < accurate.double().mean() < 0.95
    ours = apgd(net, x, y, threat, random_for(x), loss=LOSSES[loss])[right]
    assert torch.equal(robust(net, ours, y[right]), accurate)
    assert torch.equal(robust(net, found, y[right]), accurate)


class Queried:
    """A model that remembers the batches that it was asked about."""

    def __init__(self, net: Classifier) -> None:
        self.net = net
        self.batches: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.batches.append(x.detach().clone())
        return self.net(x)

    @property
    def images(self) -> int:
        return sum(len(batch) for batch in self.batches)


def test_every_iterate_of_apgd_is_that_of_the_reference() -> None:
    """Momentum, halvings and returns to the best point, bit by bit."""
    net, split, threat = digit_net(ROBUST), digits(30), Threat(0.13)
    x, y = split.images / 255, split.labels
    ours, theirs = Queried(net), Queried(net)
    apgd(ours, x, y, threat, random_for(x), steps=50, confidence=math.inf)
    reference = APGDAttack(theirs, n_iter=50, eps=threat.eps, device="cpu")
    reference.init_hyperparam(x)
    reference.attack_single_run(x, y, x_init=ours.batches[1])
    # Ours asks about the images themselves first.
    assert len(ours.batches) == 1 + 1 + 50
    assert torch.equal(torch.stack(ours.batches[1:]), torch.stack(theirs.batches))


@pytest.mark.parametrize(("trained", "threat"), THREATS)
def test_fab_is_as_near_as_the_reference_at_half_the_forwards(
    trained: Threat | None, threat: Threat
) -> None:
    net, split = digit_net(trained), digits(40)
    x, y = split.images / 255, split.labels
    theirs, ours = Queried(net), Queried(net)
    fab = FABAttack_PT(
        theirs, n_iter=20, eps=threat.eps, norm=NORMS[threat.norm], targeted=True, device="cpu"
    )
    nearest = torch.full_like(x[:, 0, 0, 0], math.inf)
    for rank in range(2, 11):
        fab.target_class = rank
        length = threat.length(fab.attack_single_run(x, y, is_targeted=True) - x)
        nearest = torch.where(length > 0, torch.minimum(length, nearest), nearest)
    found = fab_t.nearest(ours, x, y, threat, random_for(x), steps=20).distance
    right = robust(net, x, y)
    ratio = (found / nearest)[right]
    assert ratio.median().item() == pytest.approx(1.0, abs=0.002)
    assert ratio.mean().item() < 1.005
    assert ours.images < 0.55 * theirs.images


@pytest.mark.parametrize("trained", [None, ROBUST], ids=["standard", "robust"])
def test_square_in_the_euclidean_norm_is_as_strong_as_the_reference(
    trained: Threat | None,
) -> None:
    net, split, threat = digit_net(trained), digits(), Threat(0.6, norm="l2")
    x, y = split.images / 255, split.labels
    theirs = SquareAttack(net, eps=0.6, norm="L2", n_queries=300, resc_schedule=True, device="cpu")
    with torch.random.fork_rng():
        expected = robust(net, theirs.perturb(x, y), y).double().mean().item()
    ours = robust(net, square(net, x, y, threat, random_for(x), queries=300), y).double().mean()
    assert 0.3 < expected < 0.9
    # The reference never puts a window into the last row or column, an eighth of a digit.
    assert ours.item() <= expected + 0.02


def test_a_euclidean_square_takes_its_mass_from_another_window() -> None:
    x, threat = torch.full((40, 2, 9, 9), 0.5), Threat(0.5, norm="l2")
    before = square_l2.first(x, threat, random_for(x)) - x
    after = square_l2.then(x + before, x, threat, random_for(x, 4), 3) - x
    assert torch.allclose(threat.length(after), torch.tensor(0.5))
    assert (before != 0).all()
    changed = ((after - before).abs() > 1e-5).any(dim=1).flatten(1).sum(dim=1)
    emptied = (after.abs() < 1e-6).all(dim=1).flatten(1).sum(dim=1)
    assert (changed <= 2 * 9).all()
    # The windows of an image overlap at times, and then less than all nine pixels are emptied.
    assert (emptied <= 9).all()
    assert (emptied == 9).any()
    assert (changed - emptied >= 8).all()


def test_the_schedule_of_square_can_be_longer_than_its_budget() -> None:
    """As in the standard version: a longer one keeps the patches large."""
    x, y = images(12), labels(12, 5)
    areas = []
    for schedule in (20, 10_000):
        model = Queried(lambda batch: 0 * batch.flatten(1)[:, :5] + F.one_hot(y, 5))
        square(model, x, y, Threat(0.1), random_for(x), queries=20, schedule=schedule)
        # No patch is better than the first stripes: what differs from them is one patch.
        areas.append((model.batches[-1] != model.batches[1]).double().mean().item())
    assert areas[0] < 0.05 < 0.1 < areas[1]


@pytest.mark.parametrize("norm", NORMS)
def test_each_attack_meets_what_is_left_and_the_first_to_succeed_counts(norm: Norm) -> None:
    net, split, threat = digit_net(), digits(), Threat(0.06 if norm == "linf" else 0.35, norm=norm)
    x, y = split.images / 255, split.labels
    adversarial = autoattack(net, x, y, threat, random_for(x), steps=10, queries=20)
    right, survived = robust(net, x, y), robust(net, adversarial, y)
    assert (right & ~survived).any()
    assert torch.equal(adversarial[survived], x[survived])
    assert torch.equal(adversarial[~right], x[~right])
    left = torch.nonzero(right)[:, 0]
    stream = random_for(x).fork("apgd").subset(left)
    first = apgd(net, x[left], y[left], threat, stream, steps=10)
    broken = ~robust(net, first, y[left])
    assert broken.any()
    assert torch.equal(adversarial[left[broken]], first[broken])


def test_square_alone_asks_the_other_implementation() -> None:
    net, split, threat = digit_net(), digits(), Threat(0.05)
    x, y = split.images / 255, split.labels
    cheap = partial(autoattack, steps=5, queries=20, targets=2)
    scores, gradients = Queried(net), Queried(net)
    adversarial = cheap(gradients, x, y, threat, random_for(x), scores=scores)
    assert torch.equal(adversarial, cheap(net, x, y, threat, random_for(x)))
    assert len(scores.batches) == 1 + 20 + 1
    assert len(gradients.batches) > 1 + 6 + 12 + 12


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_classes_than_targets_and_ratios_need(classes: int) -> None:
    net, x = linear((1, 8, 8), classes), images(20)
    y = net(x).argmax(dim=1)
    needed = needed_eps(net, x, y, "linf")
    # The box takes part of the way: more is needed than the closed form says.
    threat = Threat(1.5 * needed.median().item())
    attacked = autoattack(net, x, y, threat, random_for(x), steps=10, queries=5)
    survived = robust(net, attacked, y)
    assert survived[needed > threat.eps].all()
    assert not survived[needed < 0.5 * threat.eps].any()
    assert 0 < survived.sum() < 20
