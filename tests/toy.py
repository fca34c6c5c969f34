"""A small network and images to train it on: an epoch takes a few hundredths of a second."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from advprune.batches import Batch
from advprune.data import ImageSet, Split
from advprune.method import Progress, Task
from advprune.models import Normalize
from advprune.objectives import Objective
from advprune.observer import Saved
from advprune.repro import ImageRandom, seeded
from advprune.types import Threat

CLASSES = 3
SIDE = 6
EPS = 0.1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Convolutions with and without bias, batch norm, a linear layer; no two of one size."""
    with seeded(seed):
        network = _network(dropout)
        # One scale for all layers, so that a global ranking empties none.
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.3)
    return nn.Sequential(OrderedDict(normalize=Normalize([0.5], [0.25]), network=network))


def _network(dropout: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(8),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(16),
            relu2=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            conv3=nn.Conv2d(16, 20, 1),
            relu3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(20, CLASSES),
        )
    )


def make_split(count: int, first: int = 0) -> Split:
    """Noise around one picture per class; no two images are alike."""
    draw = generator(1000 + first)
    pictures = torch.rand(CLASSES, 1, SIDE, SIDE, generator=generator(7))
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 1, SIDE, SIDE, generator=draw)
    images = ((0.6 * pictures[labels] + 0.4 * noise) * 255).to(torch.uint8)
    return Split(images, labels, torch.arange(first, first + count))


def make_images(train: int = 42, val: int = 30) -> ImageSet:
    return ImageSet(
        name="toy",
        classes=tuple("abc"),
        train=make_split(train),
        val=make_split(val, 10_000),
        calib=make_split(3, 20_000),
        test=make_split(3, 30_000),
        augment="none",
        digest="",
    )


def make_batch(count: int = 8, seed: int = 5) -> Batch:
    split = make_split(count)
    return Batch(split.images / 255, split.labels, ImageRandom(seed, split.indices))


def make_task(seed: int = 0, name: str = "pgd", steps: int = 2) -> Task:
    objective = replace(Objective("pgd", Threat(EPS), steps), name=name)
    return Task(objective, seed, (1, SIDE, SIDE))


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bitwise equal, key by key."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Memory:
    """An observer that keeps every checkpoint by its step, and restores the one it was given.

    Args:
        every: steps between the checkpoints that it asks for, beside those of epochs.
    """

    def __init__(self, saved: Saved | None = None, every: int | None = None) -> None:
        self.saved = saved
        self.saves: dict[int, Saved] = {}
        self.steps: list[tuple[Progress, dict[str, float]]] = []
        self.epochs: list[list[dict]] = []
        self._every = every

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self.steps.append((progress, dict(metrics)))

    def due(self, step: int) -> bool:
        return self._every is not None and step % self._every == 0

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
        self.saves[step] = (step, tensors, [dict(row) for row in history])

    def restore(self) -> Saved | None:
        return self.saved

    def epoch(self, history: list[dict]) -> None:
        self.epochs.append([dict(row) for row in history])

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return make()
