"""Promise: what ours is timed against is right: the same masks, losses, gradients and scores.

All in float64, where the order of sums moves the last of 16 digits and no sign of a gradient; 1e-9
leaves room for the few thousand terms of each sum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scripts import reference
from torch import Tensor, nn
from toy import EPS, make_batch, make_net, make_task

from advprune.attacks.losses import cross_entropy
from advprune.attacks.pgd import pgd
from advprune.batches import Batch
from advprune.masking import prunable_weights
from advprune.masks import keep_top
from advprune.methods.harp import Harp
from advprune.methods.mad import saliency
from advprune.objectives import Objective
from advprune.optimisation import Optimisation
from advprune.rates import follow, rated
from advprune.types import Threat

SPARSITY = 0.9
GAMMA = 0.02


def agree(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def net() -> nn.Module:
    return make_net().double()


@pytest.fixture
def batch() -> Batch:
    found = make_batch()
    return Batch(found.images.double(), found.labels, found.random)


@contextmanager
def seen_in_training(net: nn.Module) -> Iterator[list[Tensor]]:
    """What the network is shown in training mode: the batches of the loss, not those of attacks."""
    shown: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            shown.append(inputs[0].detach())

    handle = net.register_forward_pre_hook(keep)
    yield shown
    handle.remove()


# Masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 20, None])
def test_masks_are_equal_bit_by_bit(levels: int | None) -> None:
    """With many ties, some, and none; from no weight to all."""
    scores = torch.rand(4, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    if levels is not None:
        scores = (levels * scores).floor()
    for keep in (0, 1, 7, 90, 179, 180):
        mask = reference("masks").sorted_mask(scores, keep)
        assert mask.sum() == keep
        assert torch.equal(mask, keep_top(scores, keep))


# HARP -------------------------------------------------------------------------------------------


class Both:
    """Our search and the published one, from the same scores and rates."""

    def __init__(self, net: nn.Module, objective: str) -> None:
        self.ours, self.theirs = deepcopy(net), deepcopy(net)
        self.task = make_task(name=objective)
        self.method = Harp(sparsity=SPARSITY, annealing="gamma", gamma=GAMMA)
        self.state = self.method.start(self.ours, self.task, Optimisation(0.1, 0.0, steps=10))
        self.ours.double()
        self.layers = rated(self.ours)
        draw = torch.Generator().manual_seed(3)
        densities = {}
        with torch.no_grad():
            for name, layer in self.layers.items():
                # Apart from the weights, so that neither can take one for the other; with ties.
                drawn = torch.randn(layer.scores.shape, generator=draw)
                layer.scores.copy_((8.0 * drawn).round() / 8.0 + 1.0 / 16.0)
                layer.rate.copy_(torch.randn((), generator=draw))
                densities[name.removesuffix(".weight")] = 0.5
        follow(self.layers)
        reference("harp").mask_layers(self.theirs, densities, self.method.least)
        with torch.no_grad():
            for masked, layer in zip(self.masked, self.layers.values(), strict=True):
                masked.scores.copy_(layer.scores)
                masked.rate.copy_(layer.rate)

    @property
    def masked(self) -> list[Any]:
        return list(reference("harp").masked_layers(self.theirs))


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_a_search_has_the_same_loss_and_the_same_gradients(
    net: nn.Module, batch: Batch, objective: str
) -> None:
    both = Both(net, objective)
    with seen_in_training(both.ours) as shown:
        loss = both.method.loss(both.ours, both.state, batch, both.task).value
    loss.backward()
    adversarial, labels = shown[-1], batch.labels
    assert not torch.equal(adversarial, batch.images)
    training = reference("training")
    if objective == "trades":
        robust = training.trades_loss(both.theirs, batch.images, adversarial, labels, beta=6.0)
    else:
        robust = training.pgd_loss(both.theirs, adversarial, labels)
    hardware = reference("harp").hardware_loss(both.theirs, 1.0 - SPARSITY)
    assert hardware > 0.0
    theirs = robust + both.state["gamma"].double() * hardware
    theirs.backward()
    agree(theirs, loss)
    for masked, layer in zip(both.masked, both.layers.values(), strict=True):
        agree(masked.scores.grad, layer.scores.grad)
        agree(masked.rate.grad, layer.rate.grad)
        assert masked.layer.weight.grad is None
    for name in ("network.bn1.weight", "network.bn2.bias"):
        mine, its = both.ours.get_parameter(name), both.theirs.get_parameter(name)
        agree(its.grad, mine.grad)


def test_a_search_computes_with_the_same_weights(net: nn.Module) -> None:
    both = Both(net, "pgd")
    effective = prunable_weights(both.ours)
    for masked, (name, layer) in zip(both.masked, both.layers.items(), strict=True):
        assert torch.equal(masked.mask().bool(), layer.mask)
        assert 0 < layer.mask.sum() < layer.mask.numel()
        agree(masked.weight(), effective[name])


def test_a_search_starts_from_the_same_scores(net: nn.Module) -> None:
    method = Harp(sparsity=SPARSITY, annealing="gamma", start_allocation="uniform")
    ours, theirs = deepcopy(net), deepcopy(net)
    method.start(ours, make_task(), Optimisation(0.1, 0.0, steps=10))
    layers = rated(ours)
    densities = {
        name.removesuffix(".weight"): float(layer.density().detach())
        for name, layer in layers.items()
    }
    reference("harp").mask_layers(theirs, densities, method.least)
    for masked, layer in zip(reference("harp").masked_layers(theirs), layers.values(), strict=True):
        agree(masked.scores, layer.scores)
        torch.testing.assert_close(masked.density().float(), layer.density(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("trades", "forwards"), [(False, 12), (True, 24)])
def test_a_step_of_the_search_sorts_as_often_as_published(
    net: nn.Module, batch: Batch, trades: bool, forwards: int
) -> None:
    harp, attack = reference("harp"), reference("training").Attack(EPS, EPS / 4, steps=10)
    harp.mask_layers(net, {"network.conv2": 0.5, "network.fc": 0.5}, floor=0.01)
    masked = net.get_submodule("network.conv2")
    calls: list[bool] = []
    masked.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    learned = [p for p in net.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in learned]
    harp.harp_step(
        net,
        torch.optim.SGD(learned, lr=0.1),
        batch.images,
        batch.labels,
        attack,
        target=0.1,
        gamma=GAMMA,
        trades=trades,
    )
    assert len(calls) == forwards
    assert calls[0] and calls[-1] and not any(calls[1 : -3 if trades else -1])
    assert all(not torch.equal(b, p) for b, p in zip(before, learned, strict=True))
    assert masked.scores in set(learned) and masked.rate in set(learned)


# Adversarial training ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_training_has_the_same_loss_and_the_same_gradients(
    net: nn.Module, batch: Batch, objective: Any
) -> None:
    other = deepcopy(net)
    with seen_in_training(net) as shown:
        loss = Objective(objective, Threat(EPS), steps=3)(net, batch).value
    loss.backward()
    training = reference("training")
    if objective == "trades":
        theirs = training.trades_loss(other, batch.images, shown[-1], batch.labels, beta=6.0)
    else:
        theirs = training.pgd_loss(other, shown[-1], batch.labels)
    theirs.backward()
    agree(theirs, loss)
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        agree(its.grad, mine.grad)


def test_attacks_take_the_same_way_where_the_modes_agree(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x, y = batch.images, batch.labels
    # Of other images: at its own minimum a divergence has no gradient to follow.
    clean = net(x.flip(0)).detach()
    target = F.softmax(clean, dim=1)

    def divergence(logits: Tensor, _: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(dim=1)

    training = reference("training")
    for theirs, mine in (
        (lambda z: F.cross_entropy(net(z), y), cross_entropy),
        (lambda z: training.kl(clean, net(z)), divergence),
    ):
        for steps in (1, 4):
            settings: dict[str, Any] = {"steps": steps, "step_size": EPS / 3}
            found = training.pgd(theirs, x, x, training.Attack(EPS, **settings))
            ours = pgd(net, x, y, Threat(EPS), batch.random, **settings, loss=mine, start="none")
            agree(found, ours)
            assert (found - x).abs().max() > 0.9 * EPS / 3


def test_attacks_start_at_random_and_stay_in_the_ball(net: nn.Module, batch: Batch) -> None:
    training = reference("training")
    attack = training.Attack(EPS, EPS / 4, steps=6)
    x = batch.images
    for run in (
        lambda: training.attack_cross_entropy(net, x, batch.labels, attack),
        lambda: training.attack_divergence(net, x, attack),
    ):
        first, second = run(), run()
        assert not torch.equal(first, second)
        for found in (first, second):
            assert (found - x).abs().max() <= EPS + 1e-12
            assert found.min() >= 0.0 and found.max() <= 1.0


def test_textbook_training_attacks_in_training_mode_through_the_weights(
    net: nn.Module, batch: Batch
) -> None:
    training = reference("training")
    attack = training.Attack(EPS, EPS / 4, steps=3)
    modes: list[bool] = []
    reached: list[bool] = []
    weight = net.get_parameter("network.conv1.weight")
    weight.register_hook(lambda _: reached.append(True))
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net.eval()
    training.pgd_step(net, optimiser, batch.images, batch.labels, attack)
    assert modes == [True] * 4 and len(reached) == 4
    modes.clear()
    reached.clear()
    training.trades_step(net, optimiser, batch.images, batch.labels, attack)
    # Two forwards in each step of the attack, three of the loss; one backward in each.
    assert modes == [True] * 9 and len(reached) == 4


def test_the_gradient_of_a_step_is_that_of_its_loss_alone(net: nn.Module, batch: Batch) -> None:
    """What the attack left behind in the parameters does not count."""
    training = reference("training")
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
    still = training.Attack(0.0, 0.0, steps=5)
    training.pgd_step(net, optimiser, batch.images, batch.labels, still)
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    training.pgd_loss(net, batch.images, batch.labels).backward()
    for mine, its in zip(net.parameters(), found, strict=True):
        agree(its, mine.grad)


# MAD --------------------------------------------------------------------------------------------


def test_scores_of_damage_are_equal(net: nn.Module, batch: Batch) -> None:
    """Strided, with and without bias, convolution and linear layer, dW another in every weight."""
    draw = torch.Generator().manual_seed(2)
    shares = {
        name: torch.rand(value.shape, generator=draw).double()
        for name, value in net.named_parameters()
        if "bn" not in name
    }
    own = {name: net.get_parameter(name).detach().clone() for name in shares}
    masked = {name: share * own[name] for name, share in shares.items()}
    changes = {name: own[name] - masked[name] for name in own}
    ours = saliency(net, masked, changes, batch.images, batch.labels)
    with torch.no_grad():
        for name, value in masked.items():
            net.get_parameter(name).copy_(value)
    theirs = reference("saliency").saliency(net, changes, batch.images, batch.labels)
    assert ours.keys() == theirs.keys()
    for name, score in ours.items():
        assert (theirs[name] - score).abs().max() <= 1e-5 * score.abs().max()
        assert score.abs().max() > 0.0
