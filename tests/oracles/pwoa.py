"""PwoA's whole search as a plain loop in float64, with masked gradients and SGD written out."""

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oracles import radmm


@dataclass(frozen=True)
class Settings:
    lr: float
    momentum: float
    decay: float
    share: float
    cut: int
    updates: int
    rho: float
    x: float
    y: float
    kept: dict[str, int]


def nhsic(first: Tensor, second: Tensor) -> Tensor:
    count = len(first)
    centring = torch.eye(count).double() - 1.0 / count
    ridge = 1e-5 * count * torch.eye(count).double()
    a, b = centring @ first @ centring, centring @ second @ centring
    return torch.trace(a @ torch.linalg.inv(a + ridge) @ b @ torch.linalg.inv(b + ridge))


def gaussian(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    squares = (flat[:, None] - flat[None, :]).square().sum(2)
    return torch.exp(-squares / (2 * 25.0 * flat.shape[1]))


def forward(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of a plain chain of layers, and what its layers with weights read."""
    read = []
    for module in net.modules():
        if list(module.children()):
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            read.append(x)
        x = module(x)
    return x, read[1:]


def distilled(logits: Tensor, taught: Tensor) -> Tensor:
    p, q = (taught / 30).softmax(1), (logits / 30).softmax(1)
    return 900 * (p * (p.log() - q.log())).sum(1).mean()


def rate(fraction: float, share: float) -> float:
    """Of the peak: a cosine to zero before the cut, and from half of it after."""
    if fraction < share:
        return 0.5 * (1 + math.cos(math.pi * fraction / share))
    after = (fraction - share) / (1 - share)
    return 0.5 * (1 - math.sin(math.pi * after / 2))


def search(net: nn.Module, batches: list[tuple[Tensor, Tensor]], s: Settings) -> nn.Module:
    """`net` (float64) as it is after the last step."""
    teacher = deepcopy(net).eval()
    net.train()
    weights = {n: p for n, p in net.named_parameters() if n in s.kept}

    def project(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: torch.from_numpy(radmm.project(v.numpy(), "weight", s.kept[n]))
            for n, v in values.items()
        }

    z = project({n: w.detach() for n, w in weights.items()})
    u = {n: torch.zeros_like(w) for n, w in weights.items()}
    rho, done, masks = s.rho, 0, {}
    velocity: dict[str, Tensor] = {}
    for index, (x, y) in enumerate(batches):
        logits, hidden = forward(net, x)
        loss = distilled(logits, teacher(x).detach())
        if index < s.cut:
            for n, w in weights.items():
                loss = loss + rho / 2 * (w - z[n] + u[n]).square().sum()
        else:
            same = (y[:, None] == y[None, :]).double()
            for each in hidden:
                kernel = gaussian(each)
                loss = loss + s.x * nhsic(gaussian(x), kernel) - s.y * nhsic(same, kernel)
        names, parameters = zip(*net.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        lr = s.lr * rate((index + 0.5) / len(batches), s.share)
        for n, p, g in zip(names, parameters, gradients, strict=True):
            g = (g * masks[n] if n in masks else g) + s.decay * p.detach()
            velocity[n] = s.momentum * velocity[n] + g if n in velocity else g
            p.data -= lr * velocity[n]
        step = index + 1
        values = {n: w.detach().clone() for n, w in weights.items()}
        if step == s.cut:
            cut = project(values)
            masks = {n: cut[n] != 0 for n in cut}
            for n, w in weights.items():
                w.data.copy_(cut[n])
            velocity = {}
        elif step < s.cut and min(s.updates, step * (s.updates + 1) // s.cut) > done:
            done, rho = done + 1, 1.35 * rho
            z = project({n: values[n] + u[n] for n in values})
            u = {n: u[n] + values[n] - z[n] for n in values}
    return net
