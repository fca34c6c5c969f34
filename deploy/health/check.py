"""One sign of trouble, and what the checks have to go by."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from advprune.attacks import Attack
from advprune.attacks.pgd_worst import pgd_worst
from advprune.data import Split
from advprune.evaluate import craft, is_correct, predict
from advprune.repro import derive
from advprune.types import Images, Labels, Logits, Threat
from deploy.candidates import direct_name
from deploy.replay import Targets
from deploy.suites import Settings

Status = Literal["OK", "SUSPECT", "INVALID"]

CHANCE = 3


@dataclass(frozen=True)
class Check:
    """One sign: which, of what, its value in the unit that `what` names, and its meaning."""

    id: str
    what: str
    value: float
    status: Status


@dataclass(frozen=True)
class Evidence:
    """What the attacks left behind.

    candidates: adversarial images by attack.
    logits: by attack and model, answers to the candidates.
    survivors: by attack and model, bool (N,): still right.
    worst: by engine, bool (N,): the headline.
    slack: by how much, in logits, the margins of a twin and its engine may differ.
    settings: of the attacks.
    """

    candidates: Mapping[str, Images]
    logits: Mapping[str, Mapping[str, Logits]]
    survivors: Mapping[str, Mapping[str, Tensor]]
    worst: Mapping[str, Tensor]
    slack: float
    settings: Settings


class Probe:
    """The twin of the engine that ships, and the first images: for attacks that only check others.

    Attributes:
        name, twin: of the last engine; the one that is quantised, where there is one.
        split, x: the images.
        right: bool (n,): the twin is right on the image itself.
        pgd: bool (n,): it is still right after the suite's direct attack.
        headline: bool (n,): it is still right after every attack.
    """

    def __init__(self, targets: Targets, evidence: Evidence, direct: str) -> None:
        count = min(evidence.settings.health, len(targets.split))
        self.targets, self.evidence, self.settings = targets, evidence, evidence.settings
        self.name = direct
        self.twin: nn.Module = targets.twins[direct]
        self.split: Split = targets.split.first(count)
        self.x: Images = targets.x[:count]
        self.labels: Labels = self.split.labels
        self.right = is_correct(targets.clean[direct][:count], self.labels)
        every = torch.stack([by_model[direct] for by_model in evidence.survivors.values()])
        self.headline = every.all(dim=0)[:count] & self.right
        self.pgd = evidence.survivors[direct_name(direct)][direct][:count]

    def apart(self) -> "Probe":
        """The same with a twin of its own, for another thread."""
        other = copy(self)
        other.targets = self.targets.apart()
        other.twin = other.targets.twins[self.name]
        return other

    def __len__(self) -> int:
        return len(self.split)

    def survives(
        self, attack: Attack, threat: Threat | None = None, among: Tensor | None = None
    ) -> Tensor:
        """bool (n,): one of `among` that is right, also after one more attack on the twin."""
        among = self.right if among is None else among & self.right
        survivors = among.clone()
        rows = torch.nonzero(among)[:, 0]
        if len(rows):
            left = self.split.subset(rows)
            seed, size = derive(self.settings.seed, "health"), self.settings.batch_size
            threat = threat or self.targets.threat
            found = craft(self.twin, left, threat, seed, attack, size)
            survivors[rows] = is_correct(predict(self.twin, found, size), left.labels)
        return survivors

    def noted(self, check: Check, other: Tensor) -> Check:
        """The check of one attack by another, which is at most SUSPECT while the headline knows.

        One attack that is weak hides nothing while others find the images. It does where an
        `other` attack breaks more than a percent that nothing in the suite broke.
        """
        hidden = grade(count(self.headline & ~other), len(self), 0.01, 1.0) != "OK"
        if check.status == "INVALID" and not hidden:
            return replace(check, status="SUSPECT")
        return check

    @cached_property
    def once(self) -> Tensor:
        """bool (n,): right after one start of PGD with the suite's steps."""
        return self.survives(partial(pgd_worst, steps=self.settings.steps, restarts=1))

    def scaled(self, factor: float) -> Threat:
        """The threat with its eps multiplied, but for what no image can use."""
        threat = self.targets.threat
        return replace(threat, eps=min(factor * threat.eps, self.targets.everywhere.eps))


def grade(count: float, total: int, suspect: float, invalid: float) -> Status:
    """The status of `count` of `total` images, given the shares above which they matter.

    Counts of up to three images are chance, whatever share of a small test set they are.
    """
    if count <= CHANCE or count / total <= suspect:
        return "OK"
    return "INVALID" if count / total > invalid else "SUSPECT"


def graded(id: str, what: str, count: float, total: int, limits: tuple[float, float]) -> Check:
    return Check(id, what, count / total, grade(count, total, *limits))


def above(id: str, what: str, higher: Tensor, lower: Tensor, limits: tuple[float, float]) -> Check:
    """How much the robust accuracy that should be lower lies above the other one."""
    return graded(id, what, count(higher) - count(lower), len(higher), limits)


def beyond(value: float, suspect: float, invalid: float) -> Status:
    """The status of a quantity that is not a share of images."""
    if not value > suspect:
        return "OK"
    return "INVALID" if value > invalid else "SUSPECT"


def count(flags: Tensor) -> int:
    return int(flags.sum())
