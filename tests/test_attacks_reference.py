"""Our attacks against those of torchattacks and foolbox, and those against the textbook."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from attack_nets import conv_net, digit_net, digits, images, labels, random_for
from torch import Tensor, nn

from advprune.attacks.fgsm import fgsm
from advprune.attacks.pgd import pgd
from advprune.attacks.square import square
from advprune.frozen import frozen
from advprune.types import Threat, per_image

with warnings.catch_warnings():
    # Its import uses a part of scipy that is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from foolbox.attacks.base import Attack
    from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack
    from foolbox.attacks.projected_gradient_descent import (
        L2ProjectedGradientDescentAttack,
        LinfProjectedGradientDescentAttack,
    )
    from foolbox.models.pytorch import PyTorchModel

# A power of two: the reference averages the losses, ours are summed, and then the gradients differ
# by an exact factor.
COUNT = 32


def case(channels: int = 1) -> tuple[Tensor, Tensor]:
    return images(COUNT, (channels, 8, 8)), labels(COUNT, 5)


def textbook(net: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    adversarial = x.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(adversarial), y), adversarial)
        offset = (adversarial.detach() + alpha * gradient.sign() - x).clamp(-eps, eps)
        adversarial = (x + offset).clamp(0, 1)
    return adversarial


@pytest.mark.parametrize("eps", [8 / 255, 0.15, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_pgd_is_bitwise_the_reference(eps: float, channels: int) -> None:
    net = conv_net(channels=channels).eval()
    x, y = case(channels)
    ours = pgd(net, x, y, Threat(eps), random_for(x), steps=10, step_size=eps / 4, start="none")
    reference = torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=10, random_start=False)(x, y)
    assert torch.equal(reference, textbook(net, x, y, eps, eps / 4, 10))
    assert torch.equal(ours, reference)


def foolbox(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    model = PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, found, _ = attack(model, x, y, epsilons=eps)
    return found


@pytest.mark.parametrize("eps", [8 / 255, 0.15, 0.3])
def test_pgd_and_fgsm_are_bitwise_those_of_foolbox(eps: float) -> None:
    net = conv_net().eval()
    x, y = case()
    ours = pgd(net, x, y, Threat(eps), random_for(x), steps=10, step_size=eps / 4, start="none")
    reference = LinfProjectedGradientDescentAttack(
        abs_stepsize=eps / 4, steps=10, random_start=False
    )
    assert torch.equal(ours, foolbox(reference, net, x, y, eps))
    reference = LinfFastGradientAttack()
    assert torch.equal(
        fgsm(net, x, y, Threat(eps), random_for(x)), foolbox(reference, net, x, y, eps)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pgd_in_the_euclidean_norm_is_the_reference(channels: int) -> None:
    net, threat = conv_net(channels=channels).eval(), Threat(0.5, norm="l2")
    x, y = case(channels)
    ours = pgd(net, x, y, threat, random_for(x), steps=10, step_size=0.1, start="none")
    reference = torchattacks.PGDL2(net, eps=0.5, alpha=0.1, steps=10, random_start=False)(x, y)
    assert (ours - reference).abs().max() <= 1e-6
    other = L2ProjectedGradientDescentAttack(abs_stepsize=0.1, steps=10, random_start=False)
    assert (ours - foolbox(other, net, x, y, 0.5)).abs().max() <= 1e-6
    assert (threat.length(ours - x) > 0.45).any()


def test_pgd_is_bitwise_the_reference_with_batch_norm() -> None:
    net = conv_net(norm=True).eval()
    x, y = case()
    ours = pgd(net, x, y, Threat(0.1), random_for(x), steps=10, step_size=0.02, start="none")
    with frozen(net):
        reference = torchattacks.PGD(net, 0.1, 0.02, 10, random_start=False)(x, y)
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_pgd_from_a_random_start_is_the_reference_from_there(start) -> None:
    net, threat = conv_net().eval(), Threat(0.1)
    x, y = case()
    noise = random_for(x)
    drawn = 0.2 * noise.uniform(1, 8, 8) - 0.1
    if start == "gaussian":
        drawn = 0.001 * random_for(x).normal(1, 8, 8)
    begin = (x + drawn).clamp(0, 1)
    ours = pgd(net, x, y, threat, random_for(x), steps=1, step_size=0.02, start=start)
    begin.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(begin), y), begin)
    moved = begin.detach() + 0.02 * gradient.sign()
    expected = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)


def test_fgsm_in_the_euclidean_norm_is_one_step_of_full_length() -> None:
    net, threat = conv_net().eval(), Threat(0.5, norm="l2")
    x, y = case()
    shown = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(shown), y, reduction="sum"), shown)
    unit = gradient / per_image(gradient.flatten(1).norm(dim=1))
    expected = (x + 0.5 * unit).clamp(0, 1)
    assert torch.allclose(fgsm(net, x, y, threat, random_for(x)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [8 / 255, 0.15, 0.3])
def test_fgsm_is_bitwise_the_reference(eps: float) -> None:
    net = conv_net().eval()
    x, y = case()
    reference = torchattacks.FGSM(net, eps=eps)(x, y)
    assert torch.equal(fgsm(net, x, y, Threat(eps), random_for(x)), reference)


def test_pgd_maximises_the_loss_that_it_is_given() -> None:
    """The divergence of TRADES: a closure over clean probabilities, in the order of the batch."""
    net = conv_net().eval()
    x, y = case()
    clean = F.softmax(net(x), dim=1).detach()

    def divergence(logits: Tensor, _: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="none").sum(dim=1)

    adversarial = pgd(net, x, y, Threat(0.1), random_for(x), loss=divergence, start="gaussian")
    other = pgd(net, x, y, Threat(0.1), random_for(x))
    reached = divergence(net(adversarial), y)
    assert reached.mean() > 1.2 * divergence(net(other), y).mean()
    assert (reached > divergence(net(x + 0.1 * (torch.rand_like(x) - 0.5)), y)).all()


class EveryPosition(torchattacks.Square):
    """The reference never puts a patch into the last row or column, an eighth of a digit."""

    def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        return super().random_int(low, high + 1, shape)


@pytest.mark.parametrize("threat", [None, Threat(0.1)], ids=["standard", "robust"])
def test_square_is_as_strong_as_the_reference(threat: Threat | None) -> None:
    net, split = digit_net(threat), digits()
    x, y = split.images / 255, split.labels
    eps = 0.07 if threat is None else 0.12

    def accuracy(adversarial: Tensor) -> float:
        return (net(adversarial).argmax(dim=1) == y).double().mean().item()

    ours = [accuracy(square(net, x, y, Threat(eps), random_for(x, s), queries=300)) for s in (1, 2)]
    with torch.random.fork_rng():
        reference = [
            accuracy(EveryPosition(net, eps=eps, n_queries=300, seed=s)(x, y)) for s in (1, 2)
        ]
    assert 0.3 < sum(reference) / 2 < 0.9, "the case must leave room on both sides"
    # One random search differs from the next by about 0.02.
    assert sum(ours) / 2 == pytest.approx(sum(reference) / 2, abs=0.04)
