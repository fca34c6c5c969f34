"""A frozen network computes the same, faster, and comes back as it was."""

from copy import deepcopy

import pytest
import torch
from attack_nets import conv_net, images
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.frozen import frozen


class Counting(nn.Module):
    """A mask that counts how often it is evaluated."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(weight.detach().abs())
        self.evaluated = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.evaluated += 1
        return weight * (self.scores > self.scores.median()) * (1 + 0 * self.scores)


def masked_net() -> tuple[nn.Sequential, Counting]:
    net = conv_net(norm=True)
    masking = Counting(net.get_parameter("4.weight"))
    parametrize.register_parametrization(net[4], "weight", masking)
    masking.evaluated = 0
    return net, masking


def state(net: nn.Module) -> tuple[list[bool], list[bool], list[str]]:
    return (
        [module.training for module in net.modules()],
        [parameter.requires_grad for parameter in net.parameters()],
        [name for module in net.modules() for name in vars(module) if name == "forward"],
    )


def test_it_computes_what_eval_mode_computes() -> None:
    net, x = masked_net()[0], images(6)
    expected = deepcopy(net).eval()(x)
    net.train()
    with frozen(net):
        assert torch.allclose(net(x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(net(x), expected, atol=1e-3), "training mode would differ"


def test_masks_are_evaluated_once_and_afresh_each_time() -> None:
    net, masking = masked_net()
    with frozen(net):
        first = net(images(3))
        net(images(3))
        with frozen(net):
            net(images(3))
    assert masking.evaluated == 1
    with torch.no_grad():
        masking.scores.copy_(masking.scores.flip(0))
    with frozen(net):
        assert not torch.equal(net(images(3)), first)


def test_gradients_reach_the_input_and_nothing_else() -> None:
    net, _ = masked_net()
    with frozen(net):
        assert not net(images(2)).requires_grad
        x = images(2).requires_grad_(True)
        net(x).sum().backward()
        assert not net[4].weight.requires_grad
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    net.train()(images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(fails: bool) -> None:
    net, _ = masked_net()
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    before = state(net)
    try:
        with frozen(net), frozen(net):
            assert state(net)[:2] == ([False] * len(before[0]), [False] * len(before[1]))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert state(net) == before


class Failing(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        raise ArithmeticError


def test_everything_comes_back_when_a_mask_cannot_be_evaluated() -> None:
    net, _ = masked_net()
    parametrize.register_parametrization(net[8], "weight", Failing(), unsafe=True)
    before = state(net)
    with pytest.raises(ArithmeticError), frozen(net):
        pass
    assert state(net) == before


def test_another_network_trains_on_meanwhile() -> None:
    """Distillation: the teacher is frozen for an epoch while the student's masks change."""
    teacher, (student, masking) = conv_net(), masked_net()
    with frozen(teacher):
        student(images(2))
        student(images(2))
    assert masking.evaluated == 2


def test_batch_statistics_stay_batch_statistics() -> None:
    """Without running statistics batch norm uses the batch's in eval mode too."""
    net = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    x = images(4)
    with frozen(net):
        assert torch.allclose(net(x).mean(), torch.tensor(0.0), atol=1e-5)


def test_a_plain_function_passes_through() -> None:
    with frozen(torch.flatten):
        assert torch.flatten(images(2)).ndim == 1
