"""The attacks of torchattacks keep the promises of ours, or change nothing."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from attack_nets import conv_net, images, random_for
from torch import Tensor, nn

from advprune import attacks
from advprune.attacks import zoo
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.types import Norm, Threat

LINF, L2, WIDE = Threat(0.1), Threat(1.0, norm="l2"), Threat(6.0, norm="l2")
# Where the defaults would take seconds.
CHEAP: dict[str, dict[str, Any]] = {
    "CW": {"c": 10, "lr": 0.1, "steps": 30},
    "Square": {"n_queries": 200},
}
NORMS: dict[str, tuple[Norm, ...]] = {"PGDL2": ("l2",), "PGDRSL2": ("l2",)}
ANY = ("APGD", "APGDT", "CW", "DeepFool", "EADEN", "EADL1", "FAB", "GN", "JSMA", "OnePixel")
NORMS |= dict.fromkeys((*ANY, "Pixle", "SparseFool", "Square"), ("linf", "l2"))
every_attack = pytest.mark.parametrize("name", zoo.names())


def threat_of(name: str) -> Threat:
    """One that the attack is made for; noise and a few pixels go far."""
    if name in ("GN", "JSMA", "OnePixel", "Pixle", "SparseFool"):
        return WIDE
    return L2 if "l2" in NORMS.get(name, ()) else LINF


def case(count: int = 6) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Images that the network gets right."""
    net, x = conv_net(norm=True, dropout=0.5, channels=3).eval(), images(count, (3, 8, 8))
    with torch.no_grad():
        return net, x, net(x).argmax(dim=1)


def made(name: str) -> attacks.Attack:
    return zoo.make(name, CHEAP.get(name, {}))


def test_the_list_is_that_of_the_library_without_what_is_no_attack_on_images() -> None:
    assert len(zoo.names()) == 35
    assert {"PGD", "CW", "FAB", "Square", "SparseFool", "PIFGSMPP"} < set(zoo.names())
    left_out = set(torchattacks.__all__) - set(zoo.names())
    assert left_out == {"VANILA", "MultiAttack", "LGV", "AutoAttack"}
    assert "zoo" not in attacks.names()


@every_attack
def test_every_attack_runs_and_keeps_to_the_ball_and_the_box(name: str, capfd) -> None:
    net, x, y = case()
    x[0], x[1] = x[0].round(), x[1] * 0.05
    threat = threat_of(name)
    adversarial = made(name)(net, x, y, threat, random_for(x))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert threat.length(adversarial - x).max() <= threat.eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert capfd.readouterr() == ("", ""), "nothing may be printed into --json output"


@every_attack
def test_every_attack_finds_something(name: str) -> None:
    net, x, y = case(20)
    threat = threat_of(name)
    adversarial = made(name)(net, x, y, threat, random_for(x))
    moved = threat.length(adversarial - x) > 0
    assert moved.any()
    if name not in ("GN", "JSMA", "OnePixel", "PIFGSMPP", "SPSA", "TIFGSM", "TPGD"):
        assert (net(adversarial).argmax(dim=1) != y).any()


def states() -> list[object]:
    """Of the global generators."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return [torch.get_rng_state().tolist(), repr(numpy), random.getstate()]


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
    image, label = x.clone(), y.clone()
    generators = states()

    made(name)(net, x, y, threat_of(name), random_for(x))

    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert learning == [parameter.requires_grad for parameter in net.parameters()]
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in net.parameters() if p is not last)
    assert not any("forward" in vars(module) for module in net.modules())
    assert torch.equal(x, image) and torch.equal(y, label) and not x.requires_grad
    assert states() == generators


@pytest.mark.parametrize("name", ["PGD", "APGD", "Square", "OnePixel", "Pixle", "GN"])
def test_the_streams_alone_decide(name: str) -> None:
    net, x, y = case(12)
    attack, threat = made(name), threat_of(name)
    first = attack(net, x, y, threat, random_for(x))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    net.train()
    assert torch.equal(attack(net, x, y, threat, random_for(x)), first)
    assert not torch.equal(attack(net, x, y, threat, random_for(x, seed=4)), first)


def test_a_known_attack_is_the_librarys_own() -> None:
    net, x, y = case(12)
    for settings, alpha in (({"steps": 7, "alpha": 0.02}, 0.02), ({"steps": 7}, 2.5 * 0.1 / 7)):
        attack = zoo.make("PGD", {"random_start": False, **settings})
        oracle = torchattacks.PGD(net, eps=0.1, alpha=alpha, steps=7, random_start=False)
        with frozen(net):
            expected = oracle(x, y)
        assert torch.equal(attack(net, x, y, LINF, random_for(x)), LINF.project(expected, x))


@pytest.mark.parametrize(
    ("name", "threat", "expected"),
    [
        ("PGD", LINF, {"eps": 0.1, "alpha": 0.025, "steps": 10}),
        ("PGDL2", L2, {"eps": 1.0, "alpha": 0.25}),
        ("FFGSM", LINF, {"eps": 0.1, "alpha": 0.125}),
        ("PIFGSM", LINF, {"max_epsilon": 0.1}),
        ("FAB", LINF, {"eps": 0.1, "norm": "Linf", "n_target_classes": 4}),
        ("FAB", L2, {"eps": 1.0, "norm": "L2"}),
        ("CW", L2, {"c": 1, "steps": 50}),
    ],
)
def test_radius_norm_steps_and_classes_reach_the_library(
    name: str, threat: Threat, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    library = getattr(torchattacks, name)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen.append(self)
        return x

    monkeypatch.setattr(library, "forward", forward)
    net, x, y = case()
    zoo.make(name, {})(net, x, y, threat, random_for(x))
    assert {key: getattr(seen[0], key) for key in expected} == pytest.approx(expected)
    assert str(seen[0].device) == "cpu"


def test_what_lies_outside_the_threat_was_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = case()
    x = x * 0.5 + 0.25
    far = torch.tensor([0.05, 0.0999, 0.1001, -0.3, 0.1 + 1e-7, float("nan")])
    moved = far.view(-1, 1, 1, 1)
    monkeypatch.setattr(torchattacks.DeepFool, "forward", lambda self, x, y: x + moved)
    adversarial = zoo.make("DeepFool", {})(net, x, y, LINF, random_for(x))
    kept = [not torch.equal(a, b) for a, b in zip(adversarial, x, strict=True)]
    assert kept == [True, True, False, False, True, False]
    assert LINF.length(adversarial - x).max() <= 0.1 + 1e-7
    boxed = Threat(0.1, low=0.3, high=0.7)
    inside = x.clamp(0.3, 0.6)
    adversarial = zoo.make("DeepFool", {})(net, inside, y, boxed, random_for(x))
    assert not torch.equal(adversarial[0], inside[0])
    far[0] = 0.1
    adversarial = zoo.make("DeepFool", {})(net, inside + 0.1, y, boxed, random_for(x))
    assert torch.equal(adversarial[0], inside[0] + 0.1), "it left the box"


def test_any_classifier_will_do_and_nothing_happens_without_a_budget() -> None:
    net, x, y = case()
    by_module = made("APGD")(net, x, y, LINF, random_for(x))
    assert torch.equal(made("APGD")(lambda z: net(z), x, y, LINF, random_for(x)), by_module)
    with torch.no_grad():
        assert torch.equal(made("APGD")(net, x, y, LINF, random_for(x)), by_module)
    for name in ("PGD", "FAB", "CW"):
        assert torch.equal(made(name)(net, x, y, Threat(0.0), random_for(x)), x)

    def blind(z: Tensor) -> Tensor:
        return net(z).detach()

    with pytest.raises(Refused, match="PGD: the model has no gradient for its input; use square"):
        made("PGD")(blind, x, y, LINF, random_for(x))
    assert not torch.equal(made("Square")(blind, x, y, Threat(0.3), random_for(x)), x)


@every_attack
def test_the_other_norm_is_refused(name: str) -> None:
    net, x, y = case()
    made_for = NORMS.get(name, ("linf",))
    for threat in (LINF, L2):
        if threat.norm not in made_for:
            with pytest.raises(Refused, match=f"{name}: made for .*, and the threat is"):
                made(name)(net, x, y, threat, random_for(x))
    assert made_for


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("AutoAttack", {}, "takes 10 steps where AutoAttack takes 100 .*; use autoattack"),
        ("PDG", {}, "torchattacks:PDG is not known; did you mean PGD"),
        ("LGV", {}, "torchattacks:LGV is not known"),
        ("PGD", {"eps": 0.1}, "torchattacks:PGD: eps cannot be set; eps is the threat's"),
        ("PIFGSM", {"max_epsilon": 0.1}, "eps is the threat's"),
        ("FAB", {"norm": "L2"}, "the norm is the threat's"),
        ("APGD", {"seed": 1}, "the seed is the run's"),
        ("PGD", {"step": 3}, "'step' is not known; use alpha, steps, random_start"),
        ("FGSM", {"steps": 3}, "'steps' is not known; use no setting"),
        ("PGD", {"steps": 2.5}, "steps must be of type int, got 2.5"),
        ("PGD", {"steps": True}, "steps must be of type int, got True"),
        ("PGD", {"steps": 0}, "steps must be at least 1, got 0"),
        ("PGD", {"random_start": 1}, "random_start must be of type bool, got 1"),
        ("CW", {"c": "large"}, "c must be of type float, got 'large'"),
        ("Pixle", {"x_dimensions": (1, 2, 3)}, "x_dimensions must be of type tuple"),
        ("UPGD", {"loss": 3}, "loss must be of type str"),
    ],
)
def test_wrong_names_and_settings_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message) as caught:
        zoo.make(name, settings)
    assert "\n" not in str(caught.value)


def test_settings_are_those_that_a_user_may_give() -> None:
    assert zoo.settings("FGSM") == {}
    assert zoo.settings("PGD") == {"alpha": 2 / 255, "steps": 10, "random_start": True}
    assert "n_classes" in zoo.settings("FAB")
    assert not zoo.settings("APGD").keys() & {"eps", "norm", "seed", "verbose"}
    for name in zoo.names():
        zoo.make(name, zoo.settings(name))
    zoo.make("CW", {"c": 0.5, "kappa": 2})
    zoo.make("Pixle", {"x_dimensions": [1, 2]})


def test_images_that_are_no_images_are_refused() -> None:
    net, x, y = case()
    for wrong, message in (
        (x * 255, r"images span \[.*, 25.\..*\]: divide by 255"),
        (x - 0.5, "give them before normalisation"),
    ):
        with pytest.raises(Refused, match=message):
            made("PGD")(net, wrong, y, LINF, random_for(x))


def test_the_library_is_only_imported_when_it_is_asked_for() -> None:
    code = "import sys; from advprune import attacks; from advprune.attacks import zoo\n"
    code += "attacks.names(); assert 'torchattacks' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
