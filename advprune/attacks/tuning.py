"""The settings of FMN that suit a model best: what HO-FMN does, without its defects."""

from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch

from advprune.attacks import fmn
from advprune.attacks.fmn import Direction, LossName, Tuning
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import is_correct, predict, search
from advprune.repro import derive, generator
from advprune.types import Classifier, Threat

# Step size and momentum in HO-FMN's own ranges.
_STEP_SIZE, _GAMMA, _MOMENTUM = (8 / 255, 10.0), (0.01, 0.3), (0.0, 0.9)


@dataclass(frozen=True)
class Trial:
    """One setting and the median distance that it reached, in the norm of the threat."""

    tuning: Tuning
    median: float


@dataclass(frozen=True)
class Tuned:
    """The best trial, and all of them in the order of their draws: the first is the default."""

    best: Trial
    trials: tuple[Trial, ...]


def tune(
    model: Classifier,
    validation: Split,
    threat: Threat,
    seed: int,
    *,
    trials: int = 32,
    steps: int = 100,
) -> Tuned:
    """A random search over the settings of FMN for the least median distance.

    The released HO-FMN (Mura et al.) has three defects that this search does not have:

    - An attack that fails counts as an image of distance zero, that is as broken. Here its distance
      is infinite, and images that are wrong as they are count for no trial.
    - It drops FMN's estimate of the first radius, so that within its steps no ball can shrink below
      a fixed share of the first hit, and greater step sizes look safer. Here FMN is whole.
    - What it calls 32 batches is one batch of 64 images, over and over. Here all images of the
      split count in every trial.

    The number of images is the other half of honesty: the median over n images has a standard error
    of about 1.25 deviations over sqrt(n).

    Args:
        validation: images that the tuned attack will not be judged by.
        threat: its norm and box count, its eps does not.
        seed: of the draws; trial k is the same whatever the number of trials.
        trials: at least 1; the first is the default `Tuning`, so the result is never worse there.
        steps: of every trial.

    Raises:
        Refused: fewer trials or steps than 1, or no image that the model gets right.
    """
    if trials < 1:
        raise Refused(f"tuning: trials must be at least 1, got {trials}")
    logits = predict(model, validation.images)
    right = is_correct(logits, validation.labels)
    if not bool(right.any()):
        raise Refused("tuning: the model is wrong on every validation image; use a better one")
    judged = validation.subset(right)
    tried = []
    for number in range(trials):
        tuning = _drawn(seed, number, logits.shape[1]) if number else Tuning()
        tuning = replace(tuning, steps=steps)
        nearest = partial(fmn.nearest, tuning=tuning)
        found = search(model, judged, threat, derive(seed, "tuning"), nearest)
        tried.append(Trial(tuning, float(found.distance.median())))
    return Tuned(min(tried, key=lambda trial: trial.median), tuple(tried))


def _drawn(seed: int, number: int, classes: int) -> Tuning:
    """The settings of one trial: step size and gamma log-uniform, the others uniform."""
    share = torch.rand(5, generator=generator(seed, "tuning", number), dtype=torch.float64).tolist()
    # The ratio of logits needs three of them.
    losses: tuple[LossName, ...] = get_args(LossName)
    losses = losses if classes >= 3 else ("margin", "cross_entropy")
    directions = get_args(Direction)
    return Tuning(
        loss=losses[int(share[0] * len(losses))],
        direction=directions[int(share[1] * len(directions))],
        step_size=_STEP_SIZE[0] * (_STEP_SIZE[1] / _STEP_SIZE[0]) ** share[2],
        gamma=_GAMMA[0] * (_GAMMA[1] / _GAMMA[0]) ** share[3],
        momentum=_MOMENTUM[0] + (_MOMENTUM[1] - _MOMENTUM[0]) * share[4],
    )
