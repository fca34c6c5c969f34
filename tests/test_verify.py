"""Verification replays everything on everything, and notices when it cannot be believed."""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_nets import digit_net, digits
from engines import Coarse, Engine, Info, NotANumber
from torch import Tensor, nn

from advprune.attacks.losses import margin
from advprune.attacks.pgd_worst import pgd_worst
from advprune.errors import Refused
from advprune.evaluate import InvalidEvaluation, craft
from advprune.types import Threat
from deploy.candidates import find, plan
from deploy.replay import Bpda, Targets, classifier, deliverable, reachable
from deploy.suites import Settings
from deploy.verify import Verification, verify
from pipeline.checkpoints import Checkpoints

THREAT = Threat(0.1)
SPLIT = digits(60)
FAST = Settings(steps=20, restarts=2, queries=60, fmn=20, health=20, seed=4)
SLIGHT = Settings(steps=2, restarts=1, queries=5, fmn=2, health=5)


def coarse_net() -> nn.Module:
    """What quantisation does to a network, and more of it."""
    net = deepcopy(digit_net(THREAT))
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return net


def twins(net: nn.Module | None = None) -> dict[str, nn.Module]:
    return {"standard": digit_net(), "finetuned": net or digit_net(THREAT)}


@cache
def sound() -> tuple[Verification, Engine, Engine]:
    fp32 = Engine(digit_net(THREAT))
    int8 = Engine(digit_net(THREAT), Info(precision="int8"))
    return verify(twins(), {"fp32": fp32, "int8": int8}, SPLIT, THREAT, "d", FAST), fp32, int8


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
            "fmn@finetuned",
            "worst",
        ]
        assert verdicts["clean"] == clean
        rows = [flags for name, flags in verdicts.items() if name != "worst"]
        assert verdicts["worst"] == [all(column) for column in zip(*rows, strict=True)]
        assert 0 < sum(verdicts["worst"]) < sum(verdicts["transfer@standard"]) <= sum(clean)
        assert all(type(flag) is bool for flags in verdicts.values() for flag in flags)


def test_a_device_gets_the_candidate_that_fooled_most_engines() -> None:
    verification, fp32, int8 = sound()
    recording = verification.recording
    assert np.array_equal(recording.clean, SPLIT.images.numpy())
    assert recording.indices.tolist() == verification.indices
    within = np.abs(recording.adversarial - recording.pixels).max()
    assert within <= THREAT.eps + 1e-6
    attacked = [v for v in verification.verdicts["fp32"] if v not in ("clean", "worst")]
    for number, engine in enumerate((fp32, int8)):
        answers = engine.predict(recording.pixels), engine.predict(recording.adversarial)
        held = np.array(recording.survived(*answers)["replay"])
        table = [verification.verdicts[("fp32", "int8")[number]][attack] for attack in attacked]
        # Both engines are one network here: the image that fools one fools both.
        fmn = attacked.index("fmn@finetuned")  # judged along a line too, beyond its candidate
        shown = np.array([row for place, row in enumerate(table) if place != fmn])
        assert (held <= shown.all(axis=0)).all()


def test_attacks_of_ones_choice_join_the_suite() -> None:
    more = ("fgsm", "torchattacks:PGD:steps=2")
    settings = replace(SLIGHT, more=more)
    state = torch.get_rng_state()
    runs = [
        verify(twins(), {"fp32": Engine(digit_net(THREAT))}, SPLIT, THREAT, "d", settings)
        for _ in range(2)
    ]
    assert runs[0].verdicts == runs[1].verdicts
    assert torch.equal(torch.get_rng_state(), state)
    names = [f"{spec}@finetuned" for spec in more]
    assert set(names) < set(runs[0].verdicts["fp32"])
    protocol = {attack["name"]: attack for attack in runs[0].protocols["fp32"]["attacks"]}
    assert [protocol[name]["settings"] for name in names] == list(more)
    with pytest.raises(Refused, match="did you mean 'fgsm'"):
        verify(
            twins(),
            {"fp32": Engine(digit_net())},
            SPLIT,
            THREAT,
            "d",
            replace(SLIGHT, more=("fgms",)),
        )


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
        for settings in (FAST, FAST, replace(FAST, batch_size=7))
    ]
    assert runs[0].verdicts == runs[1].verdicts == runs[2].verdicts


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_logits_that_are_not_finite_end_the_evaluation() -> None:
    engine = NotANumber(digit_net(THREAT))
    with pytest.raises(InvalidEvaluation, match="not finite"):
        verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", FAST)


def make_targets() -> Targets:
    return Targets(twins(), {"fp32": Engine(digit_net(THREAT))}, SPLIT, THREAT, 512)


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
    settings = replace(SLIGHT, steps=5, queries=30)
    verification = verify(twins(), {"fp32": engine}, SPLIT, THREAT, "d", settings)
    assert verification.protocols["fp32"]["input"] == "uint8 NHWC"
    for shown in engine.shown:
        levels = shown.astype(np.float64) * 255
        assert np.abs(levels - levels.round()).max() < 1e-3
    x = (SPLIT.images / 255).numpy()
    offsets = [np.abs(shown - x).max() for shown in engine.shown if len(shown) == 60]
    within = [offset for offset in offsets if offset <= 25 / 255 + 1e-6]
    # 0.1 is 25.5 levels. Only the check that lifts the bound and the curve go farther.
    assert max(within) == pytest.approx(25 / 255)
    assert len(within) > len(offsets) / 2


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


def test_verification_needs_a_twin_and_an_engine() -> None:
    engine = Engine(digit_net())
    for bad_twins, engines in (
        ({}, {"fp32": engine}),
        (twins(), {}),
        (twins(), {"finetuned": engine}),
    ):
        with pytest.raises(Refused, match="needs twins and engines of other names"):
            verify(bad_twins, engines, SPLIT, THREAT, "d", FAST)


def test_the_twins_come_back_as_they_were() -> None:
    net = deepcopy(digit_net(THREAT)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    engine = Engine(deepcopy(net), Info(precision="int8"))
    verify(twins(net), {"int8": engine}, SPLIT, THREAT, "d", SLIGHT)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        verify(twins(), {"fp32": Engine(digit_net())}, SPLIT, THREAT, "d", SLIGHT)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_evaluation_that_broke_off_goes_on_after_the_attacks_that_are_done(
    tmp_path: Path,
) -> None:
    """Each attack is carried out once, and every verdict is that of an evaluation in one go."""
    engines = {
        "fp32": Engine(digit_net(THREAT)),
        "int8": Engine(coarse_net(), Info(precision="int8")),
    }
    whole = verify(twins(), engines, SPLIT, THREAT, "d", SLIGHT)
    kept, done = Checkpoints(tmp_path, pytest.fail), list[str]()

    def breaking_off(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(name)
        return kept.kept(name, make)

    with pytest.raises(KeyboardInterrupt):
        verify(twins(), engines, SPLIT, THREAT, "d", SLIGHT, breaking_off)
    first, later = list(done), list[str]()

    def going_on(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def made() -> dict[str, Tensor]:
            later.append(name)
            return make()

        return kept.kept(name, made)

    resumed = verify(twins(), engines, SPLIT, THREAT, "d", SLIGHT, going_on)
    assert resumed.verdicts == whole.verdicts
    assert resumed.curve == whole.curve
    assert resumed.health == whole.health
    assert len(first) == 4
    assert not set(first) & set(later)
    attacks = {attack for attack in whole.verdicts["fp32"] if attack not in ("clean", "worst")}
    assert set(first) | set(later) == attacks
