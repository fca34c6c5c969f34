"""Do gradients say where the loss rises, and did the attack follow them to the end?"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.pgd import ascent, starting_point
from advprune.attacks.pgd_worst import pgd_worst
from advprune.evaluate import predict
from advprune.frozen import frozen
from advprune.repro import ImageRandom, derive
from advprune.types import Images, Logits
from deploy.health.check import Check, Evidence, Probe, beyond, count, graded
from deploy.replay import Targets

_LATE = 10  # steps at the end of an attack in which its loss should move no more
_DRAWS = 100


def zero_gradient(targets: Targets, evidence: Evidence) -> list[Check]:
    """H5. Where the gradient of a loss is exactly zero, an attack stays where it starts."""
    checks, labels = [], targets.split.labels
    for name in dict.fromkeys(targets.twin_of.values()):
        twin = targets.twins[name]
        batches = list(
            zip(*(t.split(targets.batch_size) for t in (targets.x, labels)), strict=True)
        )
        zero = 0
        with frozen(twin):
            for loss in (cross_entropy, margin):
                gradients = [ascent(twin, x, y, loss)[0] for x, y in batches]
                steepest = torch.cat(gradients).flatten(1).abs().amax(dim=1)
                zero = max(zero, count(steepest == 0))
        what = f"{name}: share of images with a zero input gradient"
        checks.append(graded("H5", what, zero, len(labels), (0.0, 0.01)))
    return checks


def uphill(probe: Probe) -> Check:
    """H19. A quarter of the way along the gradient the loss must be higher."""
    threat, twin = probe.scaled(0.25), probe.twin
    with frozen(twin):
        gradient, logits = ascent(twin, probe.x, probe.labels, margin)
        moved = threat.project(probe.x + threat.eps * threat.steepest(gradient), probe.x)
        rises = margin(predict(twin, moved), probe.labels) > margin(logits, probe.labels)
    what = f"{probe.name}: share of images whose loss a quarter step uphill does not raise"
    return graded("H19", what, count(~rises), len(probe), (0.05, 0.20))


def steady_loss(probe: Probe) -> Check:
    """H18. Noise of a tenth of eps must not throw the loss about.

    The sum of its changes over 100 draws, by the sum of the losses: unlike a mean of ratios, it is
    not ruled by the images whose loss happens to be zero. (After the indicators of attack failure,
    Pintor et al. 2022.)
    """
    rng = ImageRandom(derive(probe.settings.seed, "health", "noise"), probe.split.indices)
    before = margin(predict(probe.twin, probe.x), probe.labels)
    change = torch.zeros_like(before, dtype=torch.float64)
    for _ in range(_DRAWS):
        noisy = starting_point(probe.x, probe.scaled(0.1), rng, "uniform")
        change += (margin(predict(probe.twin, noisy), probe.labels) - before).abs() / _DRAWS
    share = float(change.sum() / before.abs().sum().clamp_min(1e-12))
    what = f"{probe.name}: change of the margin under noise of a tenth of eps, relative"
    return Check("H18", what, share, beyond(share, 0.1, 0.5))


def path(probe: Probe) -> list[Check]:
    """H9 and H17, from one start of PGD that goes on to the end with every image.

    H9: the best margin so far must move no more in the last steps, by less than 5 % of its range.
    By margin: cross-entropy moves by whole factors where it is next to nothing.
    H17: an image that was misclassified on the way must be the one that is returned.
    """
    recorder = _Recorder(probe.twin)
    steps = probe.settings.steps
    attack = partial(pgd_worst, steps=steps, restarts=1, confidence=float("inf"))
    rng = ImageRandom(derive(probe.settings.seed, "health", "path"), probe.split.indices)
    with frozen(probe.twin):
        returned = attack(recorder, probe.x, probe.labels, probe.targets.threat, rng)
        margins = torch.stack([margin(logits, probe.labels) for logits in recorder.logits])
        final = margin(predict(probe.twin, returned), probe.labels)
    lost = (margins > 0).any(dim=0) & (final <= 0)
    best = margins.cummax(dim=0).values
    late = best[-1] - best[-1 - max(min(_LATE, steps // 5), 1)]
    moving = late > 0.05 * (best[-1] - best[0])
    survivors = (final <= 0) & probe.right
    unfinished = graded(
        "H9",
        f"{probe.name}: share of unbroken images whose best margin still rises in the last steps",
        count(moving & survivors),
        max(count(survivors), 1),
        (0.05, 0.20),
    )
    what = f"{probe.name}: images misclassified on the path and not returned"
    silent = Check("H17", what, count(lost), "INVALID" if bool(lost.any()) else "OK")
    return [unfinished, silent]


class _Recorder:
    """A model that remembers what it answered."""

    def __init__(self, model: Callable[[Images], Logits]) -> None:
        self._model = model
        self.logits: list[Tensor] = []

    def __call__(self, x: Images) -> Logits:
        logits = self._model(x)
        self.logits.append(logits.detach())
        return logits
