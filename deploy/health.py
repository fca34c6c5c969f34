"""Whether an evaluation can be believed: signs of attacks that failed for the wrong reason.

A robust accuracy is an upper bound, and a masked gradient makes it a bad one. No single sign
suffices, so several are taken; each is OK, SUSPECT or INVALID. Counts of up to three images are
chance and always OK, whatever share of a small test set they are.

H1 threat model kept          H2 eps = 0 changes nothing    H3 deterministic
H5 gradients are not zero     H7 many steps beat one        H13 an unbounded attack always wins
H15 black box does not win    H16 transfer does not win     H20 twin and engine agree

(After the checks of AutoAttack, Croce and Hein 2020, and the indicators of attack failure, Pintor
et al. 2022.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from advprune.attacks import Attack
from advprune.attacks.fgsm import fgsm
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.pgd import ascent
from advprune.attacks.pgd_worst import pgd_worst
from advprune.evaluate import TOLERANCE, craft, overstep
from advprune.frozen import frozen
from advprune.repro import derive
from advprune.types import Images, Logits, Threat
from deploy.candidates import DIRECT, transfer_name
from deploy.replay import Targets

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
    survivors: by attack and model, bool (N,): still right.
    adversarial: by model, logits of the direct attack's images.
    slack: by how much, in logits, the margins of twin and engine may differ.
    steps, seed: of the attacks that are run here in addition.
    """

    candidates: Mapping[str, Images]
    survivors: Mapping[str, Mapping[str, Tensor]]
    adversarial: Mapping[str, Logits]
    slack: float
    steps: int
    seed: int


def check_health(targets: Targets, evidence: Evidence) -> list[Check]:
    """All checks, in the order of their numbers."""
    checks = [_threat_kept(targets, evidence)]
    for check in (_no_budget, _deterministic, _zero_gradient, _one_step, _unbounded):
        checks += check(targets, evidence)
    for engine in targets.engines:
        checks += _black_box(targets, evidence, engine)
        checks.append(_transfer(targets, evidence, engine))
        checks += _agreement(targets, evidence, engine)
    return sorted(checks, key=lambda check: int(check.id[1:]))


def grade(count: float, total: int, suspect: float, invalid: float) -> Status:
    """The status of `count` of `total` images, given the shares above which they matter."""
    if count <= CHANCE or count / total <= suspect:
        return "OK"
    return "INVALID" if count / total > invalid else "SUSPECT"


def _graded(id: str, what: str, count: float, total: int, limits: tuple[float, float]) -> Check:
    return Check(id, what, count / total, grade(count, total, *limits))


def _threat_kept(targets: Targets, evidence: Evidence) -> Check:
    excess = max(
        overstep(targets.deliver(engine, images, targets.threat), targets.x, targets.threat)
        for images in evidence.candidates.values()
        for engine in targets.engines
    )
    what = "largest excess over ball and box, in pixel values"
    return Check("H1", what, excess, "OK" if excess <= TOLERANCE else "INVALID")


def _no_budget(targets: Targets, evidence: Evidence) -> list[Check]:
    """The whole chain with eps = 0 must reproduce the clean verdicts, image by image."""
    threat = Threat(0.0, targets.threat.low, targets.threat.high)
    attack = partial(pgd_worst, steps=2, restarts=1)
    survivors = _attacked(targets, evidence, threat, attack)
    clean = targets.survivors(targets.clean)
    checks = []
    for engine in targets.engines:
        differing = _count(survivors[engine] != clean[engine])
        what = f"{engine}: images whose verdict an attack with eps = 0 changes"
        checks.append(Check("H2", what, differing, "INVALID" if differing else "OK"))
    return checks


def _deterministic(targets: Targets, _: Evidence) -> list[Check]:
    """Five forwards: equal counts of right answers, and logits of length one within 1e-4."""
    repeats = [targets.clean] + [targets.logits(targets.x, targets.threat) for _ in range(4)]
    checks = []
    for engine in targets.engines:
        units = [torch.nn.functional.normalize(logits[engine]) for logits in repeats]
        farthest = max((unit - units[0]).norm(dim=1).max().item() for unit in units)
        counts = {int(targets.survivors(logits)[engine].sum()) for logits in repeats}
        steady = farthest <= 1e-4 and len(counts) == 1
        what = f"{engine}: distance of normalised logits over five forwards"
        checks.append(Check("H3", what, farthest, "OK" if steady else "INVALID"))
    return checks


def _zero_gradient(targets: Targets, _: Evidence) -> list[Check]:
    twin, labels = targets.twins[DIRECT], targets.split.labels
    batches = list(zip(*(t.split(targets.batch_size) for t in (targets.x, labels)), strict=True))
    zero = 0
    with frozen(twin):
        for loss in (cross_entropy, margin):
            gradients = [ascent(twin, x, y, loss)[0] for x, y in batches]
            steepest = torch.cat(gradients).flatten(1).abs().amax(dim=1)
            zero = max(zero, _count(steepest == 0))
    what = f"{DIRECT}: share of images with a zero input gradient"
    return [_graded("H5", what, zero, len(labels), (0.0, 0.01))]


def _one_step(targets: Targets, evidence: Evidence) -> list[Check]:
    single = _attacked(targets, evidence, targets.threat, fgsm)[DIRECT]
    many = evidence.survivors[f"pgd-ce@{DIRECT}"][DIRECT]
    what = f"{DIRECT}: robust accuracy under PGD above that under FGSM"
    return [_above("H7", what, many, single, (0.002, 0.01))]


def _unbounded(targets: Targets, evidence: Evidence) -> list[Check]:
    """With eps as wide as the box every image can become any other: nothing may survive."""
    box = targets.threat
    # Far from all data twin and engine differ more than on it, hence ten times the slack.
    attack = partial(pgd_worst, steps=evidence.steps, confidence=10 * evidence.slack)
    threat = Threat(box.high - box.low, box.low, box.high)
    survivors = _attacked(targets, evidence, threat, attack)
    checks = []
    for model in (DIRECT, *targets.engines):
        left = int(survivors[model].sum())
        what = f"{model}: robust accuracy with eps as wide as the box"
        checks.append(_graded("H13", what, left, len(survivors[model]), (0.0, 0.01)))
    return checks


def _black_box(targets: Targets, evidence: Evidence, engine: str) -> list[Check]:
    """Square must not do what gradients cannot.

    All gradient attacks together decide. One alone may lose to Square by a local optimum, which
    hides nothing while another finds the image: that is worth knowing, and no more.
    """
    survivors = {attack: models[engine] for attack, models in evidence.survivors.items()}
    gradient = [survivors[attack] for attack in _gradient(engine) if attack in survivors]
    square = survivors[f"square@{engine}"]
    together, weakest = torch.stack(gradient).all(dim=0), max(gradient, key=_count)
    above = "robust accuracy under {} above that under Square"
    return [
        _above(
            "H15",
            f"{engine}: {above.format('all gradient attacks')}",
            together,
            square,
            (0.002, 0.01),
        ),
        _above(
            "H15",
            f"{engine}: {above.format('the weakest gradient attack')}",
            weakest,
            square,
            (0.002, 1.0),
        ),
    ]


def _transfer(targets: Targets, evidence: Evidence, engine: str) -> Check:
    """The attack that aims at this engine most directly must be the strongest."""
    survivors = {attack: models[engine] for attack, models in evidence.survivors.items()}
    name = next(name for name in _gradient(engine) if name in survivors)
    sources = [transfer_name(twin) for twin in targets.twins]
    strongest = min((survivors[source] for source in sources), key=_count)
    what = f"{engine}: robust accuracy under {name} above that under transfer"
    return _above("H16", what, survivors[name], strongest, (0.005, 0.02))


def _gradient(engine: str) -> list[str]:
    """The gradient attacks that aim at this engine, the most direct one first."""
    return [f"bpda@{engine}", f"pgd-ce@{DIRECT}", f"pgd-margin@{DIRECT}"]


def _agreement(targets: Targets, evidence: Evidence, engine: str) -> list[Check]:
    """The twin must stand for the engine.

    Adversarial images lie at the boundary by construction, where a rounding decides; each is
    scored on the engine itself, so disagreement there is noted, and on clean images it counts.
    """
    checks = []
    for kind, logits, invalid in (
        ("clean", targets.clean, 0.02),
        ("adversarial", evidence.adversarial, 1.0),
    ):
        differing = _count(logits[engine].argmax(dim=1) != logits[DIRECT].argmax(dim=1))
        what = f"{engine}: share of {kind} images on which {DIRECT} answers otherwise"
        checks.append(_graded("H20", what, differing, len(targets.x), (0.005, invalid)))
    return checks


def _attacked(
    targets: Targets, evidence: Evidence, threat: Threat, attack: Attack
) -> dict[str, Tensor]:
    """Who survives one more attack on the twin, under a threat of its own."""
    seed = derive(evidence.seed, "health")
    twin = targets.twins[DIRECT]
    candidates = craft(twin, targets.split, threat, seed, attack, targets.batch_size)
    return targets.survivors(targets.logits(candidates, threat))


def _above(id: str, what: str, higher: Tensor, lower: Tensor, limits: tuple[float, float]) -> Check:
    """How much the robust accuracy that should be lower lies above the other one."""
    return _graded(id, what, _count(higher) - _count(lower), len(higher), limits)


def _count(flags: Tensor) -> int:
    return int(flags.sum())
