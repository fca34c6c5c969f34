"""Verification replays everything on everything, and notices when it cannot be believed."""

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from attack_nets import digit_net, digits
from numpy.typing import NDArray
from torch import Tensor, nn

from advprune.attacks.losses import margin
from advprune.attacks.pgd_worst import pgd_worst
from advprune.errors import Refused
from advprune.evaluate import InvalidEvaluation, craft
from advprune.types import Threat
from deploy.candidates import Settings, find, plan
from deploy.health import Evidence, check_health, grade
from deploy.replay import Bpda, Targets, classifier, deliverable, reachable
from deploy.verify import Verification, verify

ORDER = ["OK", "SUSPECT", "INVALID"]
THREAT = Threat(0.1)
SPLIT = digits(60)
FAST = Settings(steps=20, restarts=2, queries=60, seed=4)


@dataclass(frozen=True)
class Info:
    input: str = "float32 NCHW"
    precision: str = "fp32"


class Engine:
    """A network behind the interface of an exported one, and a record of what it was shown."""

    def __init__(self, net: nn.Module, info: Info | None = None) -> None:
        self.net, self.info = net, info or Info()
        self.shown: list[NDArray[np.float32]] = []

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert images.dtype == np.float32
        self.shown.append(images.copy())
        with torch.no_grad():
            return self.answer(self.net(torch.from_numpy(images))).numpy()

    def answer(self, logits: Tensor) -> Tensor:
        return logits


class Constant(Engine):
    def answer(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits)


class Coarse(Engine):
    """Logits on a grid so wide that margins are equal over whole regions."""

    def answer(self, logits: Tensor) -> Tensor:
        return (logits / 4).round() * 4


class Noisy(Engine):
    def __init__(self, net: nn.Module, noise: float) -> None:
        super().__init__(net)
        self.noise = noise
        self.generator = torch.Generator().manual_seed(0)

    def answer(self, logits: Tensor) -> Tensor:
        return logits + self.noise * torch.randn(logits.shape, generator=self.generator)


class NotANumber(Engine):
    def answer(self, logits: Tensor) -> Tensor:
        return logits * float("nan")


class Rounding(nn.Module):
    """Activations on a grid, and no gradient through it: robust only for who follows gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 8).round() / 8


def masked_net() -> nn.Module:
    net = deepcopy(digit_net())
    return nn.Sequential(net[:3], Rounding(), net[3])


def coarse_net() -> nn.Module:
    """What quantisation does to a network, and more of it."""
    net = deepcopy(digit_net(THREAT))
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return net


def twins(net: nn.Module | None = None) -> dict[str, nn.Module]:
    return {"standard": digit_net(), "finetuned": net or digit_net(THREAT)}


def statuses(verification: Verification, name: str) -> dict[str, str]:
    """The worst status of each check, as far as it concerns this model."""
    found: dict[str, str] = {}
    for check in verification.health:
        if check.what.startswith((name, "finetuned", "largest")):
            found[check.id] = max(found.get(check.id, "OK"), check.status, key=ORDER.index)
    return found


@cache
def sound() -> tuple[Verification, Engine, Engine]:
    fp32 = Engine(digit_net(THREAT))
    int8 = Engine(digit_net(THREAT), Info(precision="int8"))
    return verify(twins(), {"fp32": fp32, "int8": int8}, SPLIT, THREAT, "d", FAST), fp32, int8


def test_a_sound_engine_is_found_healthy() -> None:
    verification = sound()[0]
    checks = {check.id for check in verification.health}
    assert checks == {"H1", "H2", "H3", "H5", "H7", "H13", "H15", "H16", "H20"}
    assert {check.status for check in verification.health} == {"OK"}
    for engine in ("fp32", "int8"):
        parity = verification.parity[engine]
        assert parity["argmax_agreement_clean"] == parity["argmax_agreement_adversarial"] == 1.0
        assert parity["max_logit_gap"] < 1e-4


def test_verdicts_are_per_image_and_worst_is_the_and() -> None:
    verification = sound()[0]
    net, y = digit_net(THREAT), SPLIT.labels
    clean = (net(SPLIT.images / 255).argmax(dim=1) == y).tolist()
    for verdicts in verification.verdicts.values():
        assert list(verdicts) == [
            "clean",
            "pgd-ce@finetuned",
            "pgd-margin@finetuned",
            "bpda@int8",
            "transfer@standard",
            "square@fp32",
            "square@int8",
            "worst",
        ]
        assert verdicts["clean"] == clean
        rows = [flags for name, flags in verdicts.items() if name != "worst"]
        assert verdicts["worst"] == [all(column) for column in zip(*rows, strict=True)]
        assert 0 < sum(verdicts["worst"]) < sum(verdicts["transfer@standard"]) <= sum(clean)
        assert all(type(flag) is bool for flags in verdicts.values() for flag in flags)


def test_every_candidate_is_shown_to_every_engine() -> None:
    _, fp32, int8 = sound()
    whole = [{batch.tobytes() for batch in e.shown if len(batch) == 60} for e in (fp32, int8)]
    # Seven sets of candidates and the images; Square's own queries shrink as images leave.
    assert len(whole[0] & whole[1]) >= 8
    x = (SPLIT.images / 255).numpy()
    assert all(x.tobytes() in shown for shown in whole)


def test_the_transfer_matrix_has_every_source_and_target() -> None:
    verification = sound()[0]
    transfer = verification.transfer
    assert transfer["sources"] == ["standard", "finetuned"]
    assert transfer["targets"] == ["standard", "finetuned", "fp32", "int8"]
    table = np.array(transfer["accuracy"])
    assert table.shape == (2, 4)
    assert np.allclose(table[:, 1], table[:, 2])
    for row, attack in zip(table, ("transfer@standard", "pgd-ce@finetuned"), strict=True):
        assert row[2] == pytest.approx(np.mean(verification.verdicts["fp32"][attack]))
    assert table[0, 0] < table[0, 1], "the standard net is broken by its own images above all"


def test_the_protocol_says_what_a_verdict_depends_on() -> None:
    protocols = sound()[0].protocols
    assert protocols["fp32"] == protocols["int8"]
    protocol = protocols["fp32"]
    assert set(protocol) == {"data", "images", "labels", "threat", "attacks", "seed", "input"}
    assert protocol["data"] == "d"
    assert protocol["seed"] == 4
    assert protocol["input"] == "float32 NCHW [0,1]"
    assert protocol["threat"] == {"eps": 0.1, "low": 0.0, "high": 1.0, "norm": "linf"}
    little_endian = SPLIT.labels.numpy().astype("<i8").tobytes()
    assert protocol["labels"] == hashlib.sha256(little_endian).hexdigest()
    attacks = {attack["name"]: attack for attack in protocol["attacks"]}
    assert list(attacks) == list(sound()[0].verdicts["fp32"])[1:-1]
    assert attacks["pgd-ce@finetuned"]["steps"] == 20
    assert attacks["transfer@standard"]["restarts"] == 1
    assert attacks["square@int8"]["queries"] == 60
    assert json.loads(json.dumps(protocol)) == protocol


def test_neither_batches_nor_a_second_run_change_a_verdict() -> None:
    net = nn.Sequential(Double(), deepcopy(digit_net(THREAT)).double())
    runs = [
        verify(twins(net), {"fp32": Engine(net)}, SPLIT, THREAT, "d", settings)
        for settings in (FAST, FAST, Settings(20, 2, 60, 4, batch_size=7))
    ]
    assert runs[0].verdicts == runs[1].verdicts == runs[2].verdicts


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_an_engine_that_is_not_the_twin_is_invalid() -> None:
    engine = Constant(digit_net(THREAT))
    verification = verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", FAST)
    found = statuses(verification, "fp32")
    assert found["H20"] == "INVALID"
    assert found["H13"] == "INVALID", "an attack without bounds must break anything that reacts"


def test_coarse_logits_are_noticed_and_do_not_help_the_engine() -> None:
    """Square alone would call this engine robust: it sees no progress on a plateau."""
    exact = Engine(digit_net(THREAT), Info(precision="int8"))
    coarse = Coarse(digit_net(THREAT), Info(precision="int8"))
    engines = {"int8": exact, "coarse": coarse}
    verification = verify(twins(), engines, SPLIT, THREAT, "d", FAST)
    right = {name: sum(v["square@" + name]) for name, v in verification.verdicts.items()}
    worst = {name: sum(v["worst"]) for name, v in verification.verdicts.items()}
    assert right["coarse"] > worst["coarse"]
    assert worst["coarse"] <= worst["int8"] + 3
    assert verification.parity["coarse"]["max_logit_gap"] > 1.9
    assert statuses(verification, "coarse")["H20"] != "OK"


def test_a_masked_gradient_is_invalid_by_several_signs() -> None:
    net = masked_net()
    verification = verify(
        {"standard": digit_net(), "finetuned": net},
        {"fp32": Engine(net)},
        SPLIT,
        Threat(0.15),
        "d",
        Settings(steps=20, restarts=1, queries=200),
    )
    found = statuses(verification, "fp32")
    assert found["H5"] == "INVALID"
    assert found["H13"] == "INVALID"
    assert found["H15"] == "INVALID"
    assert found["H16"] == "INVALID"
    verdicts = verification.verdicts["fp32"]
    assert sum(verdicts["worst"]) < 0.5 * sum(verdicts["pgd-ce@finetuned"])


def test_an_engine_that_changes_its_mind_is_invalid() -> None:
    for noise, verdicts_change in ((0.01, False), (2.0, True)):
        engine = Noisy(digit_net(THREAT), noise)
        verification = verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", FAST)
        found = statuses(verification, "fp32")
        assert found["H3"] == "INVALID"
        assert (found["H2"] == "INVALID") == verdicts_change


def test_logits_that_are_not_finite_end_the_evaluation() -> None:
    engine = NotANumber(digit_net(THREAT))
    with pytest.raises(InvalidEvaluation, match="not finite"):
        verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", FAST)


def make_targets() -> Targets:
    return Targets(twins(), {"fp32": Engine(digit_net(THREAT))}, SPLIT, THREAT, 512)


def made_up(targets: Targets, **changes: Any) -> Evidence:
    """Evidence in which 30 of 60 images withstand every attack, but for the changes."""
    half = torch.arange(60) < 30
    attacks = ("pgd-ce@finetuned", "pgd-margin@finetuned", "transfer@standard", "square@fp32")
    evidence = Evidence(
        candidates={attack: targets.x for attack in attacks},
        survivors={attack: dict.fromkeys(targets.models, half) for attack in attacks},
        adversarial=targets.clean,
        slack=0.0,
        steps=5,
        seed=0,
    )
    return replace(evidence, **changes)


def status(targets: Targets, evidence: Evidence, id: str) -> str:
    found = [check.status for check in check_health(targets, evidence) if check.id == id]
    return max(found, key=ORDER.index)


@pytest.mark.parametrize(
    ("id", "attack", "survivors", "expected"),
    [
        ("H15", "square@fp32", 27, "OK"),
        ("H15", "square@fp32", 26, "INVALID"),
        # A masked gradient attack is noticed beside a sound one, which decides.
        ("H15", "pgd-ce@finetuned", 40, "SUSPECT"),
        ("H15", "pgd-margin@finetuned", 40, "SUSPECT"),
        ("H15", "pgd-margin@finetuned", 20, "OK"),
        ("H16", "transfer@standard", 27, "OK"),
        ("H16", "transfer@standard", 26, "INVALID"),
        ("H16", "transfer@standard", 60, "OK"),
    ],
)
def test_attacks_are_compared_pairwise(id: str, attack: str, survivors: int, expected: str) -> None:
    targets = make_targets()
    evidence = made_up(targets)
    flags = dict.fromkeys(targets.models, torch.arange(60) < survivors)
    changed = {**evidence.survivors, attack: flags}
    assert status(targets, replace(evidence, survivors=changed), id) == expected


def test_disagreement_counts_on_images_and_is_noted_on_adversarial_ones() -> None:
    targets = make_targets()
    turned = {**targets.clean, "fp32": targets.clean["fp32"].flip(1)}
    assert status(targets, made_up(targets), "H20") == "OK"
    assert status(targets, made_up(targets, adversarial=turned), "H20") == "SUSPECT"
    evidence = made_up(targets)
    targets.clean = turned
    assert status(targets, evidence, "H20") == "INVALID"


def test_a_candidate_outside_the_ball_is_invalid() -> None:
    targets = make_targets()
    for far, expected in ((0.1, "OK"), (0.11, "INVALID")):
        moved = (targets.x + far).clamp(0, 1)
        checks = check_health(targets, made_up(targets, candidates={"pgd-ce@finetuned": moved}))
        assert checks[0].id == "H1"
        assert checks[0].status == expected


def test_a_candidate_never_heals_an_image_that_was_wrong() -> None:
    targets = make_targets()
    perfect = torch.nn.functional.one_hot(SPLIT.labels, 10).float()
    clean = targets.survivors(targets.clean)
    assert not clean["fp32"].all()
    assert torch.equal(targets.survivors({"fp32": perfect})["fp32"], clean["fp32"])


def test_bpda_answers_like_the_engine_and_slopes_like_the_twin() -> None:
    twin, engine = digit_net(THREAT), Coarse(digit_net(THREAT))
    x = (SPLIT.images / 255).requires_grad_(True)
    logits = Bpda(twin, classifier(engine))(x)
    assert torch.allclose(logits, torch.from_numpy(engine.predict(x.detach().numpy())), atol=1e-5)
    (slope,) = torch.autograd.grad(logits[:, 3].sum(), x)
    (expected,) = torch.autograd.grad(twin(x)[:, 3].sum(), x)
    assert torch.allclose(slope, expected)


def test_images_leave_only_once_the_engine_must_be_wrong_too() -> None:
    """Candidates must cross the twin's boundary by the slack, and their source's all the way."""
    targets = make_targets()
    net, y = targets.twins["finetuned"], SPLIT.labels
    barely, surely = (find(targets, plan(targets, FAST, slack), FAST) for slack in (0.0, 3.0))
    name = "pgd-ce@finetuned"
    crossed = margin(net(surely[name]), y)
    assert crossed.mean() > margin(net(barely[name]), y).mean()
    assert (crossed > 3.0).sum() > (margin(net(barely[name]), y) > 3.0).sum()

    engines = {"fp32": Engine(coarse_net())}
    beyond = Targets(twins(), engines, SPLIT, Threat(0.15), 512)
    barely_crossed = find(beyond, plan(beyond, FAST, 0.0), FAST)[name]
    fooled = beyond.survivors(beyond.logits(barely_crossed, beyond.threat))["fp32"]
    verification = verify(twins(), engines, SPLIT, beyond.threat, "d", FAST)
    assert sum(verification.verdicts["fp32"][name]) < int(fooled.sum())

    source, attack = targets.twins["standard"], partial(pgd_worst, steps=20, restarts=1)
    leaving = margin(source(craft(source, SPLIT, THREAT, 1, attack)), y)
    gone_on = margin(source(barely["transfer@standard"]), y)
    assert gone_on.mean() > leaving.mean() + 0.3


def test_a_byte_engine_sees_only_bytes_within_the_ball() -> None:
    engine = Engine(digit_net(THREAT), Info(input="uint8 NHWC"))
    settings = Settings(steps=5, restarts=1, queries=30)
    verification = verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", settings)
    assert verification.protocols["fp32"]["input"] == "uint8 NHWC"
    for shown in engine.shown:
        levels = shown.astype(np.float64) * 255
        assert np.abs(levels - levels.round()).max() < 1e-3
    x = (SPLIT.images / 255).numpy()
    offsets = [np.abs(shown - x).max() for shown in engine.shown if len(shown) == 60]
    within = [offset for offset in offsets if offset <= 25 / 255 + 1e-6]
    # 0.1 is 25.5 levels; only the check that lifts the bound goes farther.
    assert max(within) == pytest.approx(25 / 255)
    assert len(offsets) - len(within) == 1


def test_grey_levels_are_cut_into_the_ball_never_out_of_it() -> None:
    byte_engine = Engine(digit_net(), Info(input="uint8 NHWC"))
    x = SPLIT.images / 255
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    for eps in (8 / 255, 0.1, 0.15, 0.5 / 255):
        threat = Threat(eps)
        candidates = threat.project(x + eps * (4 * noise - 2), x)
        rounded = deliverable(candidates, x, threat, byte_engine)
        assert (rounded - x).abs().max() <= eps + 1e-6
        assert (rounded * 255 - (rounded * 255).round()).abs().max() < 1e-3
        assert (rounded - candidates).abs().max() < 1 / 255
        assert deliverable(candidates, x, threat, Engine(digit_net())) is candidates
    assert reachable(Threat(8 / 255), byte_engine).eps == pytest.approx(8 / 255)
    assert reachable(Threat(0.5 / 255), byte_engine).eps == 0.0
    assert reachable(THREAT, Engine(digit_net())) is THREAT


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


def test_verification_needs_a_twin_and_an_engine() -> None:
    engine = Engine(digit_net())
    for bad_twins, engines in (
        ({"standard": digit_net()}, {"fp32": engine}),
        (twins(), {}),
        (twins(), {"finetuned": engine}),
    ):
        with pytest.raises(Refused, match="needs a twin 'finetuned' and engines of other names"):
            verify(bad_twins, engines, SPLIT, THREAT, "d", FAST)


def test_the_twins_come_back_as_they_were() -> None:
    net = deepcopy(digit_net(THREAT)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    settings = Settings(steps=2, restarts=1, queries=5)
    engine = Engine(deepcopy(net), Info(precision="int8"))
    verify(twins(net), {"int8": engine}, SPLIT, THREAT, "d", settings)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        settings = Settings(steps=1, restarts=1, queries=1)
        verify(twins(), {"fp32": Engine(digit_net())}, SPLIT, THREAT, "d", settings)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
