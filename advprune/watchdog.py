"""Knowing when training against a single attack step stops being enough.

Within one epoch a network can learn to answer that one step and nothing else: its accuracy under an
attack of several steps falls to zero while the training loss looks better than ever. This is called
catastrophic overfitting (Wong et al. 2020, section 5.4). The remedy here is the plain one: back to
the best weights, and on with the attack of several steps.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from advprune.data import Split
from advprune.epochs import Best
from advprune.evaluate import accuracy, survival
from advprune.method import Task
from advprune.repro import derive
from advprune.spans import span

IMAGES = 512  # of the validation split that an epoch is judged by
FALL = 0.5  # of the best robust accuracy so far; what training loses by chance is far less


class Watchdog:
    """Looks at the network after every epoch of single-step training.

    Attributes:
        fallen: whether the training has overfitted.
    """

    def __init__(self, val: Split, task: Task) -> None:
        self._val = val.first(IMAGES)
        self._task = task
        self._best = Best()
        self.fallen = False

    @span("validation")
    def look(self, net: nn.Module) -> float:
        """Robust accuracy of the network as it comes, in [0, 1]; after a fall the best is back."""
        objective = self._task.objective
        seed = derive(self._task.seed, "watchdog")
        robust = accuracy(survival(net, self._val, objective.threat, seed, steps=objective.steps))
        if robust < FALL * float(self._best.score):
            self._best.load(net)
            self.fallen = True
        else:
            self._best.offer(net, robust)
        return robust

    def task(self) -> Task:
        """What to train for: as it was; after a fall against the attack of several steps."""
        if not self.fallen:
            return self._task
        return replace(self._task, objective=replace(self._task.objective, name="pgd"))

    def pack(self) -> dict[str, Tensor]:
        return {"fallen": torch.tensor(self.fallen), **self._best.pack()}

    def unpack(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.fallen = bool(tensors["fallen"])
        self._best.unpack(tensors, device)
