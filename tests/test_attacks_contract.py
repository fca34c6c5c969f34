"""What every registered attack promises, whatever its method."""

import math

import pytest
import torch
from attack_nets import conv_net, digit_net, digits, images, labels, random_for
from torch import Tensor, nn

from advprune import attacks
from advprune.attacks.losses import cross_entropy, dlr, margin
from advprune.attacks.pgd import pgd
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import craft
from advprune.types import Threat

COUNT = 15
THREAT = Threat(0.1)
every_attack = pytest.mark.parametrize("name", attacks.names())
gradient_attack = pytest.mark.parametrize(
    "name", [row["name"] for row in attacks.describe() if row["needs"] == "gradient"]
)


def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    return conv_net(norm=True, dropout=0.5), images(COUNT), labels(COUNT, 5)


def test_the_registry_lists_files() -> None:
    assert attacks.names() == ["fgsm", "pgd", "pgd_worst", "square"]
    assert {row["needs"] for row in attacks.describe()} == {"gradient", "scores"}
    assert all(row["paper"] for row in attacks.describe())
    with pytest.raises(Refused, match="'sqare' is not known; did you mean 'square'"):
        attacks.get("sqare")


@every_attack
def test_the_ball_and_the_box_hold(name: str) -> None:
    net, x, y = case()
    x[:5], x[5:10] = x[:5].round(), x[5:10] * 0.05
    adversarial = attacks.get(name)(net, x, y, THREAT, random_for(x))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert (adversarial - x).abs().max() <= THREAT.eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, x)


@every_attack
def test_without_a_budget_nothing_moves(name: str) -> None:
    net, x, y = case()
    assert torch.equal(attacks.get(name)(net, x, y, Threat(0.0), random_for(x)), x)


@every_attack
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_nothing(name: str, batch_size: int) -> None:
    net, _, y = case()
    # In double precision, or else the sums of another batch size differ in their last bits.
    net = nn.Sequential(Double(), net.double())
    pixels = (images(COUNT) * 255).to(torch.uint8)
    split = Split(pixels, y, torch.arange(50, 50 + COUNT))
    together = craft(net, split, THREAT, 9, attacks.get(name))
    assert torch.equal(craft(net, split, THREAT, 9, attacks.get(name), batch_size), together)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@every_attack
def test_an_attack_leaves_no_trace(name: str) -> None:
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

    attacks.get(name)(net, x, y, THREAT, random_for(x))

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
            results.append(attacks.get(name)(net, x, y, THREAT, random_for(x)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", [name for name in attacks.names() if name != "fgsm"])
def test_the_seed_and_the_identity_decide(name: str) -> None:
    net, x, y = case()
    attack = attacks.get(name)
    first = attack(net, x, y, Threat(0.02), random_for(x))
    assert torch.equal(first, attack(net, x, y, Threat(0.02), random_for(x)))
    assert not torch.equal(first, attack(net, x, y, Threat(0.02), random_for(x, seed=4)))


@every_attack
def test_attacks_work_where_gradients_are_off(name: str) -> None:
    net, x, y = case()
    expected = attacks.get(name)(net, x, y, THREAT, random_for(x))
    with torch.no_grad():
        assert torch.equal(attacks.get(name)(net, x, y, THREAT, random_for(x)), expected)


@gradient_attack
def test_a_model_without_gradients_is_refused(name: str) -> None:
    net, x, y = case()
    with pytest.raises(Refused, match="no gradient for its input; use square"):
        attacks.get(name)(lambda images: net(images).detach(), x, y, THREAT, random_for(x))
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


def test_confidence_makes_images_go_on() -> None:
    net, x, y = conv_net().eval(), images(60), labels(60, 5)
    threat = Threat(0.1)
    runs = [
        margin(net(pgd_worst(net, x, y, threat, random_for(x), confidence=c)), y)
        for c in (0.0, 0.1, math.inf)
    ]
    assert (runs[1][runs[0] > 0] > 0).all()
    assert runs[0].mean() < runs[1].mean() < runs[2].mean()
    assert int((runs[1] > 0.1).sum()) == int((runs[2] > 0.1).sum())


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
        (square, {"queries": 0}, "queries must be at least 1, got 0"),
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
