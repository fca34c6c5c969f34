"""What every registered attack promises, whatever its method."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from attack_nets import conv_net, digit_net, digits, images, labels, random_for
from torch import Tensor, nn

from advprune import attacks
from advprune.attacks import Attack
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t, targeted_dlr
from advprune.attacks.autoattack import autoattack
from advprune.attacks.cw import cw
from advprune.attacks.fab_t import fab_t
from advprune.attacks.fmn import fmn
from advprune.attacks.losses import cross_entropy, dlr, margin
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import craft, overstep
from advprune.types import Norm, Threat

COUNT = 15
THREAT = Threat(0.1)
THREATS: dict[Norm, Threat] = {"linf": THREAT, "l2": Threat(0.4, norm="l2")}
# Little effort: what is promised here does not depend on it.
CHEAP = {
    "apgd": {"steps": 8},
    "apgd_t": {"steps": 6},
    "autoattack": {"steps": 6, "queries": 30},
    "cw": {"steps": 10, "rounds": 4, "rate": 0.5},
    "fab_t": {"steps": 4},
    "fmn": {"steps": 12},
    "pgd_worst": {"steps": 8},
    "square": {"queries": 40},
}
DETERMINISTIC = {"cw", "fab_t", "fgsm", "fmn"}
every_attack = pytest.mark.parametrize("name", attacks.names())
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
gradient_attack = pytest.mark.parametrize(
    "name", [row["name"] for row in attacks.describe() if row["needs"] == "gradient"]
)


def cheap(name: str) -> Attack:
    return partial(attacks.get(name), **CHEAP.get(name, {}))


def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    net, x = conv_net(norm=True, dropout=0.5), images(COUNT)
    y = net.eval()(x).argmax(dim=1)
    y[::5] = (y[::5] + 1) % 5
    return net.train(), x, y


def test_the_registry_lists_files() -> None:
    gradient = ["apgd", "apgd_t", "autoattack", "cw", "fab_t", "fgsm", "fmn", "pgd", "pgd_worst"]
    assert attacks.names() == [*gradient, "square"]
    assert {row["needs"] for row in attacks.describe()} == {"gradient", "scores"}
    assert all(row["paper"] for row in attacks.describe())
    with pytest.raises(Refused, match="'sqare' is not known; did you mean 'square'"):
        attacks.get("sqare")


@both_norms
@every_attack
def test_the_ball_and_the_box_hold(name: str, norm: Norm) -> None:
    net, x, y = case()
    x[:5], x[5:10] = x[:5].round(), x[5:10] * 0.05
    adversarial = cheap(name)(net, x, y, THREATS[norm], random_for(x))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert overstep(adversarial, x, THREATS[norm]) <= 1e-6
    assert not torch.equal(adversarial, x)


@both_norms
@every_attack
def test_without_a_budget_nothing_moves(name: str, norm: Norm) -> None:
    net, x, y = case()
    assert torch.equal(cheap(name)(net, x, y, Threat(0.0, norm=norm), random_for(x)), x)


@both_norms
@every_attack
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_nothing(name: str, norm: Norm, batch_size: int) -> None:
    net, _, y = case()
    # In double precision, or else the sums of another batch size differ in their last bits.
    net = nn.Sequential(Double(), net.double())
    pixels = (images(COUNT) * 255).to(torch.uint8)
    split = Split(pixels, y, torch.arange(50, 50 + COUNT))
    together = craft(net, split, THREATS[norm], 9, cheap(name))
    assert torch.equal(craft(net, split, THREATS[norm], 9, cheap(name), batch_size), together)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@both_norms
@every_attack
def test_an_attack_leaves_no_trace(name: str, norm: Norm) -> None:
    net, x, y = case()
    net.train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    last = net.get_parameter("8.weight")
    last.grad = torch.ones_like(last)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    learning = [parameter.requires_grad for parameter in net.parameters()]
    image, rng_state = x.clone(), torch.get_rng_state()

    cheap(name)(net, x, y, THREATS[norm], random_for(x))

    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert learning == [parameter.requires_grad for parameter in net.parameters()]
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in net.parameters() if p is not last)
    assert not any("forward" in vars(module) for module in net.modules())
    assert torch.equal(x, image)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), rng_state)


@every_attack
def test_the_network_is_attacked_in_eval_mode(name: str) -> None:
    """Dropout at work would make the result depend on the global generator."""
    net, x, y = case()
    results = []
    for mode, seed in ((True, 1), (True, 2), (False, 3)):
        net.train(mode)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append(cheap(name)(net, x, y, THREAT, random_for(x)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@every_attack
def test_the_seed_and_the_identity_decide(name: str) -> None:
    net, x, y = case()
    attack = cheap(name)
    first = attack(net, x, y, THREAT, random_for(x))
    assert torch.equal(first, attack(net, x, y, THREAT, random_for(x)))
    other = attack(net, x, y, THREAT, random_for(x, seed=4))
    assert torch.equal(first, other) == (name in DETERMINISTIC)


@every_attack
def test_attacks_work_where_gradients_are_off(name: str) -> None:
    net, x, y = case()
    expected = cheap(name)(net, x, y, THREAT, random_for(x))
    with torch.no_grad():
        assert torch.equal(cheap(name)(net, x, y, THREAT, random_for(x)), expected)


@gradient_attack
def test_a_model_without_gradients_is_refused(name: str) -> None:
    net, x, y = case()
    net.eval()
    with pytest.raises(Refused, match="no gradient for its input; use square"):
        cheap(name)(lambda images: net(images).detach(), x, y, THREAT, random_for(x))
    square(lambda images: net(images).detach(), x, y, THREAT, random_for(x), queries=3)


def test_more_effort_finds_more() -> None:
    net, split, threat = digit_net(THREAT), digits(), THREAT
    x, y = split.images / 255, split.labels

    def left(adversarial: Tensor) -> int:
        return int((net(adversarial).argmax(dim=1) == y).sum())

    one = left(attacks.get("fgsm")(net, x, y, threat, random_for(x)))
    last = left(pgd(net, x, y, threat, random_for(x), steps=50))
    worst = left(pgd_worst(net, x, y, threat, random_for(x)))
    few = left(square(net, x, y, threat, random_for(x), queries=10))
    many = left(square(net, x, y, threat, random_for(x), queries=300))
    assert 120 > one > last >= worst > 0
    assert few > many >= worst


class Watched:
    """A model that remembers every batch it was asked about."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.batches: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.batches.append(x.detach().clone())
        return self.net(x)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def test_pgd_steps_by_two_and_a_half_radii_over_the_number_of_steps() -> None:
    net, x, y = case()
    by_default = pgd(net, x, y, THREAT, random_for(x), steps=4)
    explicit = pgd(net, x, y, THREAT, random_for(x), steps=4, step_size=2.5 * THREAT.eps / 4)
    assert torch.equal(by_default, explicit)


def test_apgd_keeps_the_worst_point_of_every_start_and_broken_images_leave() -> None:
    net, x, y = conv_net().eval(), images(60), labels(60, 5)
    model, threat = Watched(net), Threat(0.05)
    adversarial = apgd(model, x, y, threat, random_for(x), steps=10, restarts=2)
    wrong = net(x).argmax(dim=1) != y
    assert torch.equal(adversarial[wrong], x[wrong])
    assert model.sizes[:2] == [60, int((~wrong).sum())]
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[-1] < model.sizes[1]
    assert len(model.sizes) == 1 + 2 * 11

    model = Watched(net)
    adversarial = apgd(
        model, x, y, threat, random_for(x), steps=10, restarts=2, confidence=math.inf
    )
    seen = torch.stack(model.batches)
    assert seen.shape[:2] == (1 + 2 * 11, 60)
    margins = torch.stack([margin(net(batch), y) for batch in seen])
    assert torch.equal(adversarial, seen[margins.argmax(dim=0), torch.arange(60)])
    assert not torch.equal(seen[1], seen[12]), "starts must differ"


def test_the_worst_point_is_kept_and_broken_images_leave() -> None:
    net, x, y = conv_net().eval(), images(60), labels(60, 5)
    model, threat = Watched(net), Threat(0.05)
    adversarial = pgd_worst(model, x, y, threat, random_for(x), steps=10, restarts=1)
    wrong = net(x).argmax(dim=1) != y
    assert torch.equal(adversarial[wrong], x[wrong])
    assert model.sizes[:2] == [60, int((~wrong).sum())]
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[-1] < model.sizes[1]
    broken = net(adversarial).argmax(dim=1) != y
    last = pgd(net, x, y, threat, random_for(x), steps=10)
    assert (margin(net(adversarial), y) >= margin(net(x), y)).all()
    assert broken.sum() >= (wrong | (net(last).argmax(dim=1) != y)).sum()


def test_every_point_of_every_start_is_scored_and_steps_shrink_to_nothing() -> None:
    net, x, y = conv_net().eval(), images(20), labels(20, 5)
    model, steps = Watched(net), 8
    settings = {"steps": steps, "restarts": 2, "confidence": math.inf}
    adversarial = pgd_worst(model, x, y, THREAT, random_for(x), **settings)
    assert model.sizes == [20] * (1 + 2 * (steps + 1))
    seen = torch.stack(model.batches)
    margins = torch.stack([margin(net(batch), y) for batch in seen])
    assert torch.equal(adversarial, seen[margins.argmax(dim=0), torch.arange(20)])

    first, second = seen[1 : steps + 2], seen[steps + 2 :]
    assert not torch.equal(first[0], second[0]), "starts must differ"
    moves = (first[1:] - first[:-1]).abs().amax(dim=(1, 2, 3, 4))
    bounds = 2 * THREAT.eps * (1 - torch.arange(steps) / steps)
    assert (moves <= bounds + 1e-6).all()
    assert moves[0] > THREAT.eps, "the first step must be able to cross the ball"


@pytest.mark.parametrize("attack", [apgd, pgd_worst])
def test_confidence_makes_images_go_on(attack: Callable[..., Tensor]) -> None:
    net, x, y = conv_net().eval(), images(60), labels(60, 5)
    threat = Threat(0.1)
    runs = [
        margin(net(attack(net, x, y, threat, random_for(x), confidence=c)), y)
        for c in (0.0, 0.1, math.inf)
    ]
    assert (runs[1][runs[0] > 0] > 0).all()
    assert runs[0].mean() < runs[1].mean() < runs[2].mean()
    assert int((runs[1] > 0.1).sum()) == int((runs[2] > 0.1).sum())


def test_square_wastes_no_query_on_what_it_knows() -> None:
    net, x, y = conv_net().eval(), images(1), labels(1, 5)
    y = net(x).argmax(dim=1)
    model = Watched(net)
    square(model, x, y, Threat(0.01), random_for(x), queries=60)
    asked = model.batches[1:]
    assert len(asked) == 60
    best, greatest = asked[0], margin(net(asked[0]), y).item()
    for candidate in asked[1:]:
        assert not torch.equal(candidate, best)
        if (here := margin(net(candidate), y).item()) > greatest:
            best, greatest = candidate, here


def test_square_stops_asking_for_broken_images_and_keeps_to_its_budget() -> None:
    net, x, y = conv_net().eval(), images(40), labels(40, 5)
    model = Watched(net)
    adversarial = square(model, x, y, Threat(0.02), random_for(x), queries=20)
    wrong = net(x).argmax(dim=1) != y
    assert torch.equal(adversarial[wrong], x[wrong])
    assert len(model.sizes) == 21
    assert model.sizes[:2] == [40, int((~wrong).sum())]
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[-1] >= int((net(adversarial).argmax(dim=1) == y).sum()) > 0


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (pgd, {"steps": 0}, "steps must be at least 1, got 0"),
        (pgd_worst, {"steps": 0}, "steps must be at least 1, got 0"),
        *[
            (attack, {"steps": 0}, "steps must be at least 1, got 0")
            for attack in (apgd, apgd_t, autoattack, cw, fab_t, fmn)
        ],
        (cw, {"rounds": 0}, "rounds must be at least 1, got 0"),
        (square, {"queries": 0}, "queries must be at least 1, got 0"),
        (square, {"schedule": 0}, "schedule must be at least 1, got 0"),
        (square, {"p_init": 0.0}, r"p_init must lie in \(0, 1\], got 0"),
    ],
)
def test_an_attack_that_would_do_nothing_is_refused(attack, settings, message) -> None:
    net, x, y = case()
    with pytest.raises(Refused, match=message):
        attack(net, x, y, THREAT, random_for(x), **settings)


def test_the_losses_are_their_formulas() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0, 4.0], [0.5, -1.0, 3.0, 2.0]])
    y = torch.tensor([1, 0])
    assert margin(logits, y).tolist() == [-1.0, 2.5]
    assert dlr(logits, y).tolist() == pytest.approx([-(5 - 4) / (5 - 2), -(0.5 - 3) / (3 - 0.5)])
    assert dlr(7 * logits + 3, y).tolist() == pytest.approx(dlr(logits, y).tolist())
    expected = [math.log(sum(math.exp(z - row[k]) for z in row)) for row, k in
                zip(logits.tolist(), y.tolist(), strict=True)]  # fmt: skip
    assert cross_entropy(logits, y).tolist() == pytest.approx(expected)
    with pytest.raises(Refused, match="at least 3 classes, got 2; use margin"):
        dlr(logits[:, :2], y)
    pairs = torch.tensor([[1, 0], [0, 3]])
    targeted = [-(5 - 2) / (5 - (2 + 1) / 2), -(0.5 - 2) / (3 - (0.5 - 1) / 2)]
    assert targeted_dlr(logits, pairs).tolist() == pytest.approx(targeted)
    assert targeted_dlr(logits[:, :3], torch.tensor([[1, 0], [0, 2]])).tolist() == [-3.0, 2.5]
