"""Promise: under kd a network learns from a robust one's answers to clean images, and no attack."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stage_runs import SMALL, Runner, with_settings
from tiny_run import TINY, Tiny, advprune, refusal
from torch import nn
from toy import Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import distillation, objectives
from advprune.distillation import taught_by
from advprune.errors import Refused
from advprune.masking import prunable_weights
from advprune.masks import load_masks
from advprune.method import Progress
from advprune.models.checkpoint import load
from advprune.objectives import Objective
from advprune.train import Schedule, fit
from advprune.types import Threat
from pipeline.lines import METRICS
from pipeline.plan import plan
from pipeline.stage import Artifact
from pipeline.watch import Watch

pytest_plugins = ["tiny_fixtures"]

KD = {"finetune.objective": "kd"}
ONE = Schedule(epochs=1, batch_size=14, lr=0.1)


def kd(teacher: nn.Module) -> Objective:
    return taught_by(replace(make_task().objective, name="kd"), teacher)


@pytest.fixture
def no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    def attacked(*_: object, **__: object) -> None:
        raise AssertionError("kd attacked")

    for name in ("pgd", "ascent", "cross_entropy_attack"):
        monkeypatch.setattr(objectives, name, attacked)
    monkeypatch.setattr(distillation, "cross_entropy_attack", attacked)
    monkeypatch.setattr(Objective, "asked", attacked)


# The loss


@pytest.mark.usefixtures("no_attack")
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_loss_is_that_of_the_definition_on_clean_images(scale: float) -> None:
    student, teacher, batch = make_net(1), make_net(2), make_batch()
    last = teacher.get_submodule("network.fc")
    assert isinstance(last, nn.Linear)
    last.weight.data.mul_(scale)
    found = kd(teacher)(student, batch)
    taught = deepcopy(teacher).double().eval()(batch.images.double())
    logits = make_net(1).double()(batch.images.double())
    p, q = (taught / 30).softmax(1), (logits / 30).softmax(1)
    expected = 900 * (p * (p.log() - q.log())).sum(1).mean()
    # Near a teacher the sum cancels: the loss is a small difference, its gradient is not.
    assert float(found.value.detach()) == pytest.approx(
        float(expected.detach()), rel=1e-3, abs=3e-4
    )
    assert int(found.correct) == int((logits.argmax(1) == batch.labels).sum())
    found.value.backward()
    names = [name for name, _ in student.named_parameters()]
    reference = make_net(1).double()
    q = reference(batch.images.double()) / 30
    (900 * (p.detach() * -q.log_softmax(1)).sum(1).mean()).backward()
    for name in names:
        got, want = student.get_parameter(name).grad, reference.get_parameter(name).grad
        assert got is not None and want is not None
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("no_attack")
def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    net = make_net().eval()
    loss = kd(deepcopy(net))(net, make_batch())
    loss.value.backward()
    assert abs(float(loss.value.detach())) < 1e-3
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-4 for p in net.parameters())


@pytest.mark.usefixtures("no_attack")
def test_labels_say_nothing() -> None:
    teacher, batch = make_net(2), make_batch()
    other = replace(batch, labels=(batch.labels + 1) % 3)
    first, second = (kd(teacher)(make_net(1), each).value for each in (batch, other))
    assert torch.equal(first, second)


def test_the_teacher_is_left_as_it_is() -> None:
    teacher = make_net(2, dropout=0.5).train()
    teacher.get_submodule("network.bn2").eval()
    modes = {name: module.training for name, module in teacher.named_modules()}
    before = snapshot(teacher)
    fit(make_net(1), make_images(), replace(make_task(), objective=kd(teacher)), ONE, Memory())
    assert same(snapshot(teacher), before)
    assert {name: module.training for name, module in teacher.named_modules()} == modes
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_an_epoch_is_measured_under_attack() -> None:
    task = replace(make_task(), objective=kd(make_net(2)))
    trained = fit(make_net(1), make_images(), task, ONE, Memory())
    assert {"val_clean", "val_robust"} <= trained.history[0].keys()


def test_only_kd_takes_a_teacher() -> None:
    plain = Objective("trades", Threat(0.1), 3, 2.0, "bf16")
    assert taught_by(plain, make_net()) is plain
    taught = taught_by(replace(plain, name="kd"), make_net())
    settings = (taught.threat, taught.steps, taught.beta, taught.precision)
    assert settings == (plain.threat, 3, 2.0, "bf16")
    with pytest.raises(Refused, match="'kd' is not known"):
        replace(plain, name="kd")(make_net(), make_batch())


# The stage


def needs(settings: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.needs for stage in plan(with_settings(settings, SMALL))}


def test_fine_tuning_reads_the_robust_network_under_kd_alone() -> None:
    plain, taught = needs({}), needs(KD)
    assert plain["finetune"] == ("data", "prune")
    assert taught["finetune"] == ("data", "prune", "adversarial")
    assert plain | {"finetune": ()} == taught | {"finetune": ()}
    finetune = next(s for s in plan(with_settings(KD, SMALL)) if s.name == "finetune")
    parents = [
        {name: artifact(content if name == "adversarial" else name) for name in finetune.needs}
        for content in ("one", "another")
    ]
    assert finetune.key(parents[0]) != finetune.key(parents[1])


def artifact(content: str) -> Artifact:
    return Artifact(Path(content), {"files": {"weights": {"sha256": content}}})


@pytest.mark.parametrize("stage", ["", "adversarial.", "prune.", "quantize."])
def test_kd_is_refused_where_there_is_no_teacher(stage: str, tmp_path: Path) -> None:
    line = refusal(advprune("run", "--runs", tmp_path, "--set", f"{stage}objective=kd"), 2)
    assert f"{stage or '--'}objective 'kd'" in line
    assert "give --set finetune.objective=kd" in line
    assert not list(tmp_path.iterdir())


class Stopped(Watch):
    """Ctrl-C in the middle of an epoch, after one has been saved."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if progress.step > progress.epoch_steps + 3:
            raise KeyboardInterrupt
        super().step(progress, metrics)


CHANNELS = {"method": "magnitude", "sparsity": 0.5, "options": {"granularity": "channel"}}


@pytest.mark.parametrize("pruned", [{"method": "magnitude"}, CHANNELS], ids=["weight", "channel"])
def test_what_is_left_learns_from_what_there_was(pruned: Mapping, tmp_path: Path) -> None:
    recipe = with_settings({**pruned, **KD, "finetune.epochs": 2}, SMALL)
    runner = Runner(recipe, tmp_path / "whole")
    for name in ("data", "standard", "adversarial", "prune", "finetune"):
        made = runner.build(name)
    rows = (made.path / METRICS).read_text()
    assert rows.count("val_robust") == 2
    student, teacher = load(made.check()), load(runner.made["adversarial"].check())
    masks = load_masks(runner.made["prune"].file("masks.safetensors"))
    left = {name: weight.numel() for name, weight in prunable_weights(student).items()}
    whole = {name: weight.numel() for name, weight in prunable_weights(teacher).items()}
    if "options" in pruned:
        assert sum(left.values()) < 0.5 * sum(whole.values())
    else:
        assert left == whole
        for name, weight in prunable_weights(student).items():
            assert not weight[~masks[name]].any()
    # Interrupted, it ends in the same bits.
    other = Runner(recipe, tmp_path / "again")
    other.made = {name: made for name, made in runner.made.items() if name != "finetune"}
    with pytest.raises(KeyboardInterrupt):
        other.build("finetune", Stopped)
    assert other.build("finetune").digest == made.digest


@pytest.mark.slow
def test_a_whole_run_ends_in_a_verdict(tiny: Tiny) -> None:
    words = ("--set", "finetune.objective=kd")
    planned = advprune("plan", "--runs", tiny.runs, *TINY, *words, "--json")
    assert planned.code == 0, planned.err
    before = tiny.store
    assert tiny.again(*words).code in (0, 10, 11)
    made = {name.rpartition("-")[0] or name for name in tiny.store - before}
    assert not any(name.startswith(("data", "standard", "adversarial", "prune")) for name in made)
    assert any(name.startswith("finetune") for name in made)
