"""Small networks for the tests of attacks, untrained or trained in a moment."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from advprune.data import Split, load
from advprune.repro import ImageRandom, seeded
from advprune.types import Threat


def random_for(x: torch.Tensor, seed: int = 3) -> ImageRandom:
    """The streams of images that are numbered from 100."""
    return ImageRandom(seed, torch.arange(100, 100 + len(x)))


def images(count: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def conv_net(norm: bool = False, dropout: float = 0.0, channels: int = 1) -> nn.Sequential:
    """Two convolutions and a linear layer, for (channels, 8, 8) images and five classes."""
    with seeded(5, "conv net"):
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8, affine=False) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 5),
        )
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                # Statistics other than 0 and 1, or a wrong fold would go unseen.
                module.running_mean.uniform_(-0.3, 0.3)  # pyright: ignore
                module.running_var.uniform_(0.3, 2.0)  # pyright: ignore
    return net


@cache
def digits(count: int = 120) -> Split:
    """The first test images of the digits: every class alike."""
    test = load("digits", data_dir=Path("unused")).test
    return Split(test.images[:count], test.labels[:count], test.indices[:count])


@cache
def digit_net(threat: Threat | None = None) -> nn.Sequential:
    """A perceptron for the digits; under a threat, trained with single steps from random starts."""
    train = load("digits", data_dir=Path("unused")).train
    x, y = train.images / 255, train.labels
    with seeded(11, "digit net"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        # By hand: the first optimiser of torch takes seconds to import what it does not need.
        speeds = [torch.zeros_like(parameter) for parameter in net.parameters()]
        for _ in range(200):
            shown = x
            if threat:
                start = threat.project(x + threat.eps * (2 * torch.rand_like(x) - 1), x)
                start.requires_grad_(True)
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(start), y), start)
                shown = threat.project(start.detach() + threat.eps * gradient.sign(), x)
            slopes = torch.autograd.grad(F.cross_entropy(net(shown), y), list(net.parameters()))
            with torch.no_grad():
                for parameter, speed, slope in zip(net.parameters(), speeds, slopes, strict=True):
                    parameter.sub_(0.2 * speed.mul_(0.9).add_(slope))
    return net.eval()
