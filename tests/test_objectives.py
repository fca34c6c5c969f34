"""Every objective is its paper's formula, and the attack inside leaves no trace."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import EPS, make_batch, make_net, same, snapshot

from advprune import objectives
from advprune.attacks.pgd import pgd, starting_point
from advprune.batches import Batch
from advprune.errors import Refused
from advprune.masking import Scored, attach, freeze_layers
from advprune.objectives import OBJECTIVES, SINGLE_STEP, Objective
from advprune.repro import ImageRandom
from advprune.types import Threat

BETA = 3.5
# What the steps of the attack could move together, relative to the radius.
REACH = {"pgd": 2.5, "trades": 2.5, "mart": 2.5, "mad": 2.3}
PGD = Objective("pgd", Threat(EPS), steps=3, beta=BETA)
# Of those see test_fast_training and test_free.
NAMES = sorted(set(OBJECTIVES) - {*SINGLE_STEP, "free"})
ADVERSARIAL = [name for name in NAMES if name != "natural"]
every_objective = pytest.mark.parametrize("name", NAMES)
adversarial = pytest.mark.parametrize("name", ADVERSARIAL)


def objective(name: str) -> Objective:
    return replace(PGD, name=name)


class Crafted:
    """Calls the attack and remembers what it was asked for and what it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.images: list[Tensor] = []
        monkeypatch.setattr(objectives, "pgd", self)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        rng: ImageRandom,
        **settings: Any,
    ) -> Tensor:
        self.calls.append(settings | {"threat": threat, "training": model.training})
        self.images.append(pgd(model, x, y, threat, rng, **settings))
        return self.images[-1]


def make_masked_net() -> nn.Module:
    """As a search sees it: scores learn, weights do not."""
    net = make_net()
    freeze_layers(net)
    attach(net, lambda _, weight: Scored(weight, max(1, weight.numel() // 2)))
    return net


# The papers' formulas, image by image and class by class, on probabilities in float64.


def slow_cross_entropy(p: Tensor, y: int) -> Tensor:
    return -torch.log(p[y])


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((p[k] * (torch.log(p[k]) - torch.log(q[k])) for k in range(len(p))), torch.zeros(()))


def slow_natural(clean: Tensor, adversarial: Tensor, y: int) -> Tensor:
    return slow_cross_entropy(clean, y)


def slow_pgd(clean: Tensor, adversarial: Tensor, y: int) -> Tensor:
    return slow_cross_entropy(adversarial, y)


def slow_trades(clean: Tensor, adversarial: Tensor, y: int) -> Tensor:
    return slow_cross_entropy(clean, y) + BETA * slow_kl(clean, adversarial)


def slow_mart(clean: Tensor, adversarial: Tensor, y: int) -> Tensor:
    wrong = torch.stack([adversarial[k] for k in range(len(adversarial)) if k != y]).max()
    boosted = slow_cross_entropy(adversarial, y) - torch.log(1.0001 - wrong)
    return boosted + BETA * slow_kl(clean, adversarial) * (1 - clean[y])


SLOW = {
    "natural": slow_natural,
    "pgd": slow_pgd,
    "trades": slow_trades,
    "mart": slow_mart,
    "mad": slow_mart,
}


def slow_loss(name: str, net: nn.Module, batch: Batch, crafted: Tensor) -> Tensor:
    clean = net(batch.images.double()).softmax(1)
    adversarial = net(crafted.double()).softmax(1)
    triples = zip(clean, adversarial, batch.labels.tolist(), strict=True)
    return torch.stack([SLOW[name](p, q, y) for p, q, y in triples]).mean()


@every_objective
@pytest.mark.parametrize("make", [make_net, make_masked_net])
def test_value_and_gradients_are_those_of_the_paper_s_formula(
    name: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = make(), make_batch()
    exact = deepcopy(net).double()
    crafted = Crafted(monkeypatch)
    loss = objective(name)(net, batch)
    loss.value.backward()
    images = crafted.images[0] if crafted.images else batch.images
    expected = slow_loss(name, exact, batch, images)
    expected.backward()
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert loss.value.shape == ()
    for (key, got), want in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key
        if got.grad is not None and want.grad is not None:
            scale = float(want.grad.abs().max()) + 1e-3
            assert torch.allclose(got.grad.double(), want.grad, rtol=1e-4, atol=1e-5 * scale), key


@every_objective
def test_correct_counts_the_images_as_trained_upon(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = make_net(), make_batch(30)
    twin = deepcopy(net)
    crafted = Crafted(monkeypatch)
    correct = objective(name)(net, batch).correct
    images = crafted.images[0] if crafted.images else batch.images
    guesses = twin(images).argmax(1)
    assert int(correct) == sum(
        guess == label for guess, label in zip(guesses.tolist(), batch.labels.tolist(), strict=True)
    )
    assert not correct.requires_grad


@adversarial
def test_the_attack_is_the_one_of_the_paper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = make_net(), make_batch()
    crafted = Crafted(monkeypatch)
    objective(name)(net, batch)
    (call,) = crafted.calls
    assert call["threat"] == PGD.threat
    assert call["steps"] == PGD.steps
    assert call["training"] is False
    assert call.get("start", "uniform") == ("uniform" if name == "pgd" else "gaussian")
    # TRADES leaves the step to the attack, whose own is the same 2.5 eps / steps.
    step = call.get("step_size", 2.5 * EPS / PGD.steps)
    assert step == pytest.approx(REACH[name] * EPS / PGD.steps)
    (images,) = crafted.images
    assert float((images - batch.images).abs().max()) <= EPS + 1e-6
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("name", "eps", "steps", "size"),
    # A quarter of the radius at ten steps; MAD's code has 0.0069 at eps 0.03.
    [("pgd", 8 / 255, 10, 2 / 255), ("mart", 8 / 255, 10, 2 / 255), ("mad", 0.03, 10, 0.0069)],
)
def test_the_steps_of_the_attack_are_those_of_the_authors(
    name: str, eps: float, steps: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted = Crafted(monkeypatch)
    Objective(name, Threat(eps), steps)(make_net(), make_batch(2))  # pyright: ignore
    assert crafted.calls[0]["step_size"] == pytest.approx(size)


# The weight of the robust term


@pytest.mark.parametrize(
    ("name", "beta"),
    [("trades", 6.0), ("mart", 5.0), ("mad", 0.5), ("natural", None), ("pgd", None)],
)
def test_each_objective_has_its_paper_s_weight_unless_one_is_given(
    name: str, beta: float | None
) -> None:
    own = replace(objective(name), beta=None)
    assert own.robust_weight == beta
    given = replace(own, beta=BETA)
    assert given.robust_weight == (None if beta is None else BETA)
    none = replace(own, beta=0.0)
    losses = [float(o(make_net(), make_batch()).value.detach()) for o in (none, own, given)]
    if beta is None:
        assert len(set(losses)) == 1
    else:
        # Linear in the weight, so each loss shows with which it was computed.
        slope = (losses[2] - losses[0]) / BETA
        assert slope > 1e-3
        assert losses[1] == pytest.approx(losses[0] + beta * slope, rel=1e-5)


def test_mad_is_mart_but_for_its_weight_and_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    crafted = Crafted(monkeypatch)
    mad, mart = (objective(name) for name in ("mad", "mart"))
    values = [o(make_net().eval(), make_batch()).value for o in (mad, mart)]
    assert not torch.equal(*crafted.images)
    assert not torch.equal(*values)
    # Against the same images, at the same weight, they are the same loss.
    monkeypatch.setattr(objectives, "pgd", lambda *_, **__: crafted.images[0])
    values = [o(make_net().eval(), make_batch()).value for o in (mad, mart)]
    assert torch.equal(*values)


def test_trades_attacks_the_divergence_from_the_clean_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, batch = make_net(), make_batch()
    net(batch.images)
    exact = deepcopy(net).double().eval()
    crafted = Crafted(monkeypatch)
    objective("trades")(net, batch)
    divergence = crafted.calls[0]["loss"]
    clean = exact(batch.images.double()).softmax(1).detach()
    elsewhere = exact(crafted.images[0].double()).detach()
    expected = torch.stack(
        [slow_kl(p, q) for p, q in zip(clean, elsewhere.softmax(1), strict=True)]
    )
    got = divergence(elsewhere.float(), batch.labels)
    assert got.shape == (len(batch.labels),)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-6)
    # The attack raised it: at the clean images it is zero.
    assert float(expected.min()) > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_attack_leaves_no_gradients_and_no_modes_behind(name: str) -> None:
    net, batch = make_masked_net(), make_batch()
    net.get_submodule("network.bn2").eval()
    modes = {key: module.training for key, module in net.named_modules()}
    learning = {key: p.requires_grad for key, p in net.named_parameters()}
    marks = {key: torch.full_like(p, 7.0) for key, p in net.named_parameters() if p.requires_grad}
    for key, p in net.named_parameters():
        p.grad = marks[key].clone() if key in marks else None
    loss = objective(name)(net, batch)
    for key, p in net.named_parameters():
        if p.grad is None:
            assert key not in marks, key
        else:
            assert torch.equal(p.grad, marks[key]), key
    assert {key: module.training for key, module in net.named_modules()} == modes
    assert {key: p.requires_grad for key, p in net.named_parameters()} == learning
    assert loss.value.requires_grad


@every_objective
def test_batch_norm_counts_the_training_forwards_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = make_net(), make_batch()
    twin = deepcopy(net)
    crafted = Crafted(monkeypatch)
    objective(name)(net, batch)
    if name != "pgd":
        twin(batch.images)
    if name != "natural":
        twin(crafted.images[0])
    assert same(snapshot(net), snapshot(twin))


@adversarial
@pytest.mark.parametrize("rows", [[0], [2, 3, 4], [7, 1, 0]])
def test_the_random_start_of_an_image_does_not_depend_on_its_batch(
    name: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []

    def stay(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: ImageRandom, **settings):
        starts.append(starting_point(x, threat, rng, settings.get("start", "uniform")))
        return starts[-1]

    monkeypatch.setattr(objectives, "pgd", stay)
    whole = make_batch(8)
    part = Batch(whole.images[rows], whole.labels[rows], ImageRandom(5, torch.tensor(rows)))
    for batch in (whole, part):
        objective(name)(make_net().eval(), batch)
    assert torch.equal(starts[0][rows], starts[1])
    moved = (starts[0] - whole.images).abs().flatten(1).amax(1)
    assert (moved > 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_repeats_bitwise_and_draws_from_no_global_generator(name: str) -> None:
    nets = make_net(), make_net()
    state = torch.get_rng_state()
    first, second = (objective(name)(net, make_batch()).value for net in nets)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@adversarial
def test_without_room_for_the_adversary_what_remains_is_the_clean_loss(name: str) -> None:
    free = replace(objective(name), threat=Threat(0.0))
    batch = make_batch()
    got = float(free(make_net(), batch).value.detach())
    natural = float(objective("natural")(make_net(), batch).value.detach())
    if name in ("mart", "mad"):
        p = make_net()(batch.images).softmax(1).detach()
        wrong = p.scatter(1, batch.labels[:, None], 0.0).amax(1)
        natural -= float(torch.log(1.0001 - wrong).mean())
    assert got == pytest.approx(natural, rel=1e-5)


@pytest.mark.parametrize("logit", [0.0, 80.0, 1e4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_certain_predictions_give_finite_losses_and_gradients(name: str, logit: float) -> None:
    net, batch = make_net(), make_batch()
    fc = net.get_submodule("network.fc")
    assert isinstance(fc, nn.Linear) and fc.bias is not None
    fc.bias.data = torch.tensor([logit, 0.0, 0.0])
    loss = objective(name)(net, batch).value
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_an_unknown_objective_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        Refused, match="'madry' is not known; use one of natural, pgd, trades, mart, mad"
    ):
        objective("madry")(make_net(), make_batch())
