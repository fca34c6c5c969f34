"""Promise: a share of the loss is what a teacher, left untouched, says of the clean image."""

import pytest
import torch
import torch.nn.functional as F
from attack_nets import conv_net, images, labels

from advprune.batches import Batch
from advprune.distillation import Distilled
from advprune.objectives import Objective, cross_entropy_attack
from advprune.repro import ImageRandom
from advprune.types import Threat

THREAT = Threat(eps=0.1)


def batch() -> Batch:
    return Batch(images(12), labels(12, 5), ImageRandom(0, torch.arange(12)))


def distilled(share: float, teacher: torch.nn.Module) -> Distilled:
    return Distilled("pgd", THREAT, 3, teacher=teacher, share=share)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_definition(share: float) -> None:
    student, teacher = conv_net(norm=True), conv_net(channels=1)
    torch.manual_seed(0)
    for parameter in teacher.parameters():
        parameter.data.mul_(3.0)
    found = distilled(share, teacher)(student.eval(), batch())
    objective, one = Objective("pgd", THREAT, 3), batch()
    adversarial = cross_entropy_attack(objective, student, one)
    with torch.no_grad():
        taught = teacher.eval()(one.images).softmax(1).double()
        answered = student(adversarial).double()
    divergence = (taught * (taught.log() - answered.log_softmax(1))).sum(1).mean()
    by_label = F.cross_entropy(answered, one.labels)
    expected = (1 - share) * by_label + share * divergence
    assert found.value.item() == pytest.approx(float(expected), rel=1e-5)
    assert int(found.correct) == int((answered.argmax(1) == one.labels).sum())
    if share == 0.0:
        plain = objective(student, batch())
        assert found.value.item() == pytest.approx(plain.value.item(), rel=1e-6)


def test_the_teacher_is_left_as_it_is() -> None:
    student, teacher = conv_net(), conv_net(norm=True, dropout=0.5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distilled(0.5, teacher)(student, batch()).value.backward()
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is not None for parameter in student.parameters())
