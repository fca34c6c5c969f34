"""GAP one image at a time, and the released computation with CleverHans' own calls."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scores(net: nn.Module, adversarial: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Equation 4: the sum over images of -dL/dtheta, in float64, by the name of the weight."""
    net = copy.deepcopy(net).double().eval()
    total = {name: torch.zeros_like(weight) for name, weight in weights_of(net).items()}
    for image, label in zip(adversarial, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image[None].double()), label[None]).backward()
        for name, weight in weights_of(net).items():
            assert weight.grad is not None
            total[name] -= weight.grad
    return total


def released_gradients(
    net: nn.Module, x: Tensor, start: Tensor, y: Tensor, eps: float, size: float, steps: int
) -> dict[str, Tensor]:
    """What is left in .grad after one batch: training mode, and nothing ever sets it to zero."""
    net = copy.deepcopy(net).train()
    for parameter in net.parameters():
        parameter.grad = None
    _, predicted = torch.max(net(x), 1)
    adv_x = start
    for _ in range(steps):
        adv_x = _fast_gradient_method(net, adv_x, size, predicted)
        eta = torch.clamp(adv_x - x, -eps, eps)
        adv_x = torch.clamp(x + eta, 0.0, 1.0)
    nn.CrossEntropyLoss()(net(adv_x), y).backward()
    found = {}
    for name, weight in weights_of(net).items():
        assert weight.grad is not None
        found[name] = weight.grad.clone()
    return found


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found[f"{name}.weight"] = module.weight
    return found


def _fast_gradient_method(net: nn.Module, x: Tensor, eps: float, y: Tensor) -> Tensor:
    x = x.clone().detach().requires_grad_(True)
    loss = nn.CrossEntropyLoss()(net(x), y)
    loss.backward()
    assert x.grad is not None
    return torch.clamp(x + eps * torch.sign(x.grad), 0.0, 1.0).detach()
