"""The optimiser of every training stage, and what a method may know of the run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class Optimisation:
    """Settings of SGD that a method's parameter groups may depart from, and the run's length.

    Attributes:
        steps: of the whole run.
        images: how many there are to train on.
    """

    lr: float
    weight_decay: float
    steps: int
    momentum: float = 0.9
    images: int = 1


def trainable(net: nn.Module) -> ParameterGroups:
    """All that learns, with the shared settings."""
    return [{"params": [p for p in net.parameters() if p.requires_grad]}]


def sgd(groups: ParameterGroups, optimisation: Optimisation) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        lr=optimisation.lr,
        momentum=optimisation.momentum,
        weight_decay=optimisation.weight_decay,
    )
