"""Adversarial training as textbooks write it: PGD-AT (Madry et al. 2018), TRADES (Zhang 2019).

The network stays in the mode that it trains in, every step of the attack is a `loss.backward()`
through all of its weights, and TRADES asks for the clean logits again in every step. The gradient
of those is left out: nobody needs it, and the published code does not take it either.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.types import Images, Labels, Logits


@dataclass(frozen=True)
class Attack:
    """PGD in the maximum norm, in the box [0, 1]."""

    eps: float
    step_size: float
    steps: int


# The loss of images that are to raise it.
Ascended = Callable[[Images], Tensor]


def pgd(loss: Ascended, images: Images, start: Images, attack: Attack) -> Images:
    """The last of `attack.steps` steps along the sign of the gradient (Madry, section 2.1).

    Leaves gradients of all parameters behind: whoever calls it sets them to zero.
    """
    x = start
    for _ in range(attack.steps):
        x = x.detach().requires_grad_(True)
        loss(x).backward()
        assert x.grad is not None
        x = x.detach() + attack.step_size * x.grad.sign()
        x = torch.min(torch.max(x, images - attack.eps), images + attack.eps).clamp(0.0, 1.0)
    return x.detach()


def attack_cross_entropy(net: nn.Module, images: Images, labels: Labels, attack: Attack) -> Images:
    """PGD from a uniform random start of the ball."""
    noise = attack.eps * (2.0 * torch.rand_like(images) - 1.0)
    start = (images + noise).clamp(0.0, 1.0)
    return pgd(lambda x: F.cross_entropy(net(x), labels), images, start, attack)


def attack_divergence(net: nn.Module, images: Images, attack: Attack) -> Images:
    """PGD on KL(p(x) || p(x_adv)) from a Gaussian start; the clean logits anew in every step."""

    def divergence(x: Images) -> Tensor:
        with torch.no_grad():
            clean = net(images)
        return kl(clean, net(x), reduction="sum")

    start = (images + 0.001 * torch.randn_like(images)).clamp(0.0, 1.0)
    return pgd(divergence, images, start, attack)


def kl(clean: Logits, adversarial: Logits, reduction: str = "batchmean") -> Tensor:
    """KL(p(x) || p(x_adv))."""
    target = F.softmax(clean, dim=1)
    return F.kl_div(F.log_softmax(adversarial, dim=1), target, reduction=reduction)


def pgd_loss(net: nn.Module, adversarial: Images, labels: Labels) -> Tensor:
    """CE(x_adv) (Madry et al. 2018, equation 2.1)."""
    return F.cross_entropy(net(adversarial), labels)


def trades_loss(
    net: nn.Module, images: Images, adversarial: Images, labels: Labels, beta: float
) -> Tensor:
    """CE(x) + beta KL(p(x) || p(x_adv)) (Zhang et al. 2019, equation 5), in three forwards."""
    natural = F.cross_entropy(net(images), labels)
    return natural + beta * kl(net(images), net(adversarial))


def pgd_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Images,
    labels: Labels,
    attack: Attack,
) -> None:
    """One step of PGD-AT."""
    net.train()
    adversarial = attack_cross_entropy(net, images, labels, attack)
    optimiser.zero_grad()
    pgd_loss(net, adversarial, labels).backward()
    optimiser.step()


def trades_step(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Images,
    labels: Labels,
    attack: Attack,
    beta: float = 6.0,
) -> None:
    """One step of TRADES."""
    net.train()
    adversarial = attack_divergence(net, images, attack)
    optimiser.zero_grad()
    trades_loss(net, images, adversarial, labels, beta).backward()
    optimiser.step()
