"""Every check can fail, for the reason that it is there for, and is silent otherwise."""

import cProfile
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attack_nets import digit_net, digits
from engines import Coarse, Constant, Engine, Info, Noisy
from masked_nets import MASKED, Act
from torch import Tensor, nn

from advprune.types import Threat
from deploy.health import Check, Evidence, check_health, engines, gradients, model, strength
from deploy.health.check import Probe, grade
from deploy.health.planted import planted_hole
from deploy.replay import Targets
from deploy.suites import Settings
from deploy.verify import Verification, verify

ORDER = ["OK", "SUSPECT", "INVALID"]
THREAT = Threat(0.1)
SPLIT = digits(60)
FAST = Settings(steps=20, restarts=1, queries=60, fmn=10, health=60, seed=4)
ATTACKS = ("pgd-ce@finetuned", "pgd-margin@finetuned", "transfer@standard", "square@fp32")


def make_targets(
    net: nn.Module | None = None, engine: Engine | None = None, threat: Threat = THREAT
) -> Targets:
    net = net or digit_net(THREAT)
    twins = {"standard": digit_net(), "finetuned": net}
    return Targets(twins, {"fp32": engine or Engine(net)}, SPLIT, threat, 512)


def made_up(targets: Targets, **changes: Any) -> Evidence:
    """Evidence in which 30 of 60 images withstand every attack, but for the changes."""
    half = torch.arange(60) < 30
    evidence = Evidence(
        candidates=dict.fromkeys(ATTACKS, targets.x),
        logits=dict.fromkeys(ATTACKS, targets.clean),
        survivors={attack: dict.fromkeys(targets.models, half) for attack in ATTACKS},
        worst={"fp32": half},
        slack=0.0,
        settings=FAST,
    )
    return replace(evidence, **changes)


def survivors(targets: Targets, **counts: int) -> dict[str, dict[str, Tensor]]:
    """Half of the images withstand each attack, but for those named: "pgd-ce", "square" ..."""
    found = {}
    for attack in ATTACKS:
        count = counts.get(attack.partition("@")[0].replace("-", "_"), 30)
        found[attack] = dict.fromkeys(targets.models, torch.arange(60) < count)
    return found


def probe(targets: Targets, **counts: int) -> Probe:
    evidence = made_up(targets, survivors=survivors(targets, **counts))
    return Probe(targets, evidence, "finetuned")


def worst(checks: list[Check]) -> str:
    return max((check.status for check in checks), key=ORDER.index)


def statuses(verification: Verification, name: str) -> dict[str, str]:
    """The worst status of each check, as far as it concerns this model."""
    found: dict[str, str] = {}
    for check in verification.health:
        if check.what.startswith((name, "finetuned", "largest")):
            found[check.id] = max(found.get(check.id, "OK"), check.status, key=ORDER.index)
    return found


def test_a_candidate_outside_the_ball_is_invalid() -> None:
    targets = make_targets()
    for far, expected in ((0.1, "OK"), (0.11, "INVALID")):
        evidence = made_up(targets, candidates={"pgd": (targets.x + far).clamp(0, 1)})
        assert worst(strength.threat_kept(targets, evidence)) == expected


def test_an_engine_that_changes_its_mind_is_invalid() -> None:
    for noise, verdicts_change in ((0.01, False), (2.0, True)):
        targets = make_targets(engine=Noisy(digit_net(THREAT), noise))
        evidence = made_up(targets)
        assert worst(model.deterministic(targets, evidence)) == "INVALID"
        assert (worst(strength.no_budget(targets, evidence)) == "INVALID") == verdicts_change


class Softmax(Engine):
    def answer(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


def test_probabilities_are_suspect() -> None:
    for engine, expected in ((Engine(digit_net()), "OK"), (Softmax(digit_net()), "SUSPECT")):
        targets = make_targets(engine=engine)
        assert worst(model.gives_logits(targets, made_up(targets))) == expected


def test_a_network_without_a_gradient_is_invalid() -> None:
    for name, expected in (("rounded activations", "INVALID"), ("stochastic layer", "OK")):
        targets = make_targets(MASKED[name]())
        assert worst(gradients.zero_gradient(targets, made_up(targets))) == expected


@pytest.mark.parametrize("name", ["stochastic layer", "inner optimisation"])
def test_a_forward_that_draws_or_descends_is_invalid(name: str) -> None:
    assert model.plain_forward(probe(make_targets())).status == "OK"
    restless = probe(make_targets(MASKED[name]()))
    state = torch.get_rng_state()
    assert model.plain_forward(restless).status == "INVALID"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_forward_is_watched_beside_a_profiler_and_leaves_it_running() -> None:
    profiler = cProfile.Profile()
    with profiler:
        found = [
            model.plain_forward(probe(make_targets(MASKED[name]()))).status
            for name in ("rounded activations", "inner optimisation")
        ]
    assert found == ["OK", "INVALID"]
    calls = {
        entry.code.co_name: entry.callcount
        for entry in profiler.getstats()
        if not isinstance(entry.code, str)
    }
    assert calls["plain_forward"] == 2
    assert sys.getprofile() is None


def test_one_step_must_not_beat_many() -> None:
    targets = make_targets()
    assert strength.one_step(probe(targets)).status == "OK"
    # FGSM breaks some of the images that this PGD is said to have left.
    assert strength.one_step(probe(targets, pgd_ce=60)).status == "INVALID"


@pytest.mark.parametrize("check", [strength.more_steps, strength.more_starts])
def test_more_effort_must_not_find_what_nothing_found(check: Callable[[Probe], Check]) -> None:
    targets = make_targets()
    weak = {"pgd_ce": 60, "pgd_margin": 60, "transfer": 60, "square": 60}
    # Where other attacks of the suite found the images, one that is weak is only suspect.
    for counts, expected in ((weak, "INVALID"), (weak | {"square": 0}, "SUSPECT")):
        probing = probe(targets, **counts)
        probing.__dict__["once"] = probing.right
        assert check(probing).status == expected
    probing = probe(targets)
    probing.pgd = probing.once
    assert check(probing).status == "OK"


def test_an_attack_that_is_still_under_way_is_noticed() -> None:
    targets = make_targets()
    found = {check.id: check.status for check in gradients.path(probe(targets))}
    assert found == {"H9": "OK", "H17": "OK"}

    class OnePixel(torch.autograd.Function):
        """Shows the gradient of one pixel more for every step."""

        shown = 0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Tensor:
            OnePixel.shown += 1
            kept = torch.arange(64).reshape(1, 8, 8) == 2 * (OnePixel.shown % 32) + 1
            return slopes[0] * kept

    slow = nn.Sequential(Act(OnePixel.apply), digit_net(THREAT))  # pyright: ignore
    found = {check.id: check.status for check in gradients.path(probe(make_targets(slow)))}
    assert found["H9"] != "OK"


def test_a_success_that_is_forgotten_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(net: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
        for image in (x, 1 - x, x, x, x):
            net(image)
        return x

    monkeypatch.setattr(gradients, "pgd_worst", forgetful)
    found = {check.id: check.status for check in gradients.path(probe(make_targets()))}
    assert found["H17"] == "INVALID"


def test_losses_that_disagree_are_noticed() -> None:
    assert strength.losses_agree(probe(make_targets())).status == "OK"
    scaled = make_targets(MASKED["scaled logits"]())
    hidden = {"pgd_ce": 60, "pgd_margin": 60, "transfer": 60, "square": 60}
    assert strength.losses_agree(probe(scaled, **hidden)).status == "INVALID"
    assert strength.losses_agree(probe(scaled, square=0)).status == "SUSPECT"


class Flat(nn.Module):
    """Right about one class whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(10)[3] + 0.0 * x.flatten(1)[:, :1]


def test_an_eps_that_does_not_matter_is_invalid() -> None:
    assert strength.eps_matters(probe(make_targets())).status == "OK"
    assert strength.eps_matters(probe(make_targets(Flat()))).status == "INVALID"


def test_an_unbounded_attack_must_win() -> None:
    for net, expected in ((digit_net(THREAT), "OK"), (Flat(), "INVALID")):
        targets = make_targets(net)
        assert worst(strength.unbounded(targets, made_up(targets))) == expected


def test_noise_must_not_break_what_pgd_leaves() -> None:
    strong = make_targets(threat=Threat(0.9))
    assert strength.noise_loses(probe(strong, pgd_ce=0), "fp32").status == "OK"
    assert strength.noise_loses(probe(strong, pgd_ce=60), "fp32").status == "INVALID"


@pytest.mark.parametrize(
    ("check", "attack", "count", "expected"),
    [
        ("H15", "square", 27, "OK"),
        ("H15", "square", 26, "INVALID"),
        # A masked gradient attack is noticed beside a sound one, which decides.
        ("H15", "pgd_ce", 40, "SUSPECT"),
        ("H15", "pgd_margin", 40, "SUSPECT"),
        ("H15", "pgd_margin", 20, "OK"),
        ("H16", "transfer", 27, "OK"),
        ("H16", "transfer", 26, "INVALID"),
        ("H16", "transfer", 60, "OK"),
    ],
)
def test_attacks_are_compared_pairwise(check: str, attack: str, count: int, expected: str) -> None:
    targets = make_targets()
    evidence = made_up(targets, survivors=survivors(targets, **{attack: count}))
    found = [
        *engines.black_box(targets, evidence, "fp32"),
        engines.transfer(targets, evidence, "fp32"),
    ]
    assert worst([one for one in found if one.id == check]) == expected


def test_a_loss_that_noise_throws_about_is_suspect() -> None:
    assert gradients.steady_loss(probe(make_targets())).status == "OK"
    torn = nn.Sequential(Act(lambda x: x + 0.5 * torch.sin(4000 * x)), digit_net())
    assert gradients.steady_loss(probe(make_targets(torn))).status != "OK"


def test_a_gradient_that_points_downhill_is_invalid() -> None:
    assert gradients.uphill(probe(make_targets())).status == "OK"
    reversed_net = MASKED["reversed gradient"]()
    assert gradients.uphill(probe(make_targets(reversed_net))).status == "INVALID"


def test_disagreement_counts_on_images_and_is_noted_on_adversarial_ones() -> None:
    targets = make_targets()
    turned = {**targets.clean, "fp32": targets.clean["fp32"].flip(1)}

    def found(evidence: Evidence) -> str:
        return worst(engines.agreement(targets, evidence, "fp32"))

    assert found(made_up(targets)) == "OK"
    assert found(made_up(targets, logits=dict.fromkeys(ATTACKS, turned))) == "SUSPECT"
    targets.clean = turned
    assert found(made_up(targets)) == "INVALID"


def test_what_no_file_can_hold_is_suspect() -> None:
    """An attack within less than one grey level is gone once it is stored."""
    targets = make_targets(threat=Threat(0.4 / 255))
    evidence = made_up(targets, worst={"fp32": torch.zeros(60, dtype=torch.bool)})
    assert engines.survives_rounding(targets, evidence, "fp32").status == "SUSPECT"
    evidence = made_up(targets, worst=targets.survivors(targets.clean))
    assert engines.survives_rounding(targets, evidence, "fp32").status == "OK"


def test_a_planted_hole_must_be_found() -> None:
    assert planted_hole(probe(make_targets())).status == "OK"
    masked = make_targets(MASKED["rounded activations"]())
    assert planted_hole(probe(masked)).status == "INVALID"
    assert planted_hole(probe(make_targets(Flat()))).status == "SUSPECT"


def test_a_plain_network_must_fall() -> None:
    targets = make_targets()
    for count, expected in ((0, "OK"), (3, "OK"), (4, "SUSPECT"), (60, "SUSPECT")):
        evidence = made_up(targets, survivors=survivors(targets, transfer=count))
        assert worst(strength.anchor(targets, evidence)) == expected
    alone = {name: found for name, found in survivors(targets).items() if "standard" not in name}
    assert strength.anchor(targets, made_up(targets, survivors=alone)) == []


def test_a_plain_network_that_was_never_trained_need_not_fall() -> None:
    """It answers one class to everything, so a tenth of the images withstand whatever is done."""
    targets = make_targets()
    evidence = made_up(targets, survivors=survivors(targets, transfer=6))
    assert worst(strength.anchor(targets, evidence)) == "SUSPECT"
    constant = torch.zeros_like(targets.clean["standard"])
    targets.clean = {**targets.clean, "standard": constant}
    assert strength.anchor(targets, evidence) == []


def test_a_headline_that_spares_an_attack_is_invalid() -> None:
    targets = make_targets()
    right = targets.survivors(targets.clean)
    assert engines.worst_case(targets, made_up(targets, worst=right), "fp32").status == "OK"
    everything = {"fp32": torch.ones(60, dtype=torch.bool)}
    assert engines.worst_case(targets, made_up(targets, worst=everything), "fp32").value > 0


def test_a_model_that_was_changed_is_invalid() -> None:
    targets = make_targets()
    assert worst(model.unchanged([targets])) == "OK"
    targets.twins["finetuned"].train()
    assert worst(model.unchanged([targets])) == "INVALID"
    targets.twins["finetuned"].eval()
    with torch.no_grad():
        next(targets.twins["finetuned"].parameters()).add_(1e-6)
    assert worst(model.unchanged([targets])) == "INVALID"


def test_all_25_are_taken_in_order() -> None:
    targets = make_targets()
    found = [check.id for check in check_health(targets, made_up(targets))]
    assert list(dict.fromkeys(found)) == [f"H{number}" for number in range(1, 26)]


def test_an_engine_that_is_not_the_twin_is_invalid() -> None:
    net = digit_net(THREAT)
    twins = {"standard": digit_net(), "finetuned": net}
    found = statuses(verify(twins, {"fp32": Constant(net)}, SPLIT, THREAT, "d", FAST), "fp32")
    assert found["H20"] == "INVALID"
    assert found["H13"] == "INVALID", "an attack without bounds must break anything that reacts"


def test_coarse_logits_are_noticed_and_do_not_help_the_engine() -> None:
    """Square alone would call this engine robust: it sees no progress on a plateau."""
    net, quantised = digit_net(THREAT), Info(precision="int8")
    both = {"int8": Engine(net, quantised), "coarse": Coarse(net, quantised)}
    twins = {"standard": digit_net(), "finetuned": net}
    verification = verify(twins, both, SPLIT, THREAT, "d", FAST)
    right = {name: sum(v["square@" + name]) for name, v in verification.verdicts.items()}
    worst = {name: sum(v["worst"]) for name, v in verification.verdicts.items()}
    assert right["coarse"] > worst["coarse"]
    assert worst["coarse"] <= worst["int8"] + 3
    assert verification.parity["coarse"]["max_logit_gap"] > 1.9
    assert statuses(verification, "coarse")["H20"] != "OK"


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (-40, 360, "OK"),
        (0, 360, "OK"),
        (3, 60, "OK"),
        (4, 10_000, "OK"),
        (51, 10_000, "SUSPECT"),
        (4, 360, "SUSPECT"),
        (8, 360, "INVALID"),
        (201, 10_000, "INVALID"),
    ],
)
def test_up_to_three_images_are_chance(count: int, total: int, expected: str) -> None:
    assert grade(count, total, suspect=0.005, invalid=0.02) == expected
