"""Is the attack as strong as it should be: does more find nothing more, and enough find all?"""

import itertools
from dataclasses import replace
from functools import partial

from advprune.attacks.fgsm import fgsm
from advprune.attacks.losses import dlr, margin
from advprune.attacks.pgd import starting_point
from advprune.attacks.pgd_worst import pgd_worst
from advprune.evaluate import TOLERANCE, craft, is_correct, overstep, predict
from advprune.repro import ImageRandom, derive
from deploy.candidates import direct_name, transfer_name
from deploy.health.check import Check, Evidence, Probe, Status, above, count, grade, graded
from deploy.replay import Targets, deliverable

_DRAWS = 100
_STARTS = 5
_STEP = 0.002  # of robust accuracy: what may be chance where more should never help
PLAIN = "standard"


def threat_kept(targets: Targets, evidence: Evidence) -> list[Check]:
    """H1. No image lies outside the ball or the box, as the engines receive it."""
    excess = max(
        overstep(targets.deliver(engine, images, targets.threat), targets.x, targets.threat)
        for images in evidence.candidates.values()
        for engine in targets.engines
    )
    what = "largest excess over ball and box, in pixel values"
    return [Check("H1", what, excess, "OK" if excess <= TOLERANCE else "INVALID")]


def no_budget(targets: Targets, evidence: Evidence) -> list[Check]:
    """H2. The whole chain with eps = 0 must reproduce the clean verdicts, image by image."""
    threat = replace(targets.threat, eps=0.0)
    attack = partial(pgd_worst, steps=2, restarts=1)
    seed = derive(evidence.settings.seed, "health")
    clean, checks = targets.survivors(targets.clean), []
    for engine, twin in targets.twin_of.items():
        images = craft(targets.twins[twin], targets.split, threat, seed, attack, targets.batch_size)
        delivered = targets.deliver(engine, images, threat)
        logits = predict(targets.models[engine], delivered, targets.batch_size)
        differing = count(targets.survivors({engine: logits})[engine] != clean[engine])
        what = f"{engine}: images whose verdict an attack with eps = 0 changes"
        checks.append(Check("H2", what, differing, "INVALID" if differing else "OK"))
    return checks


def one_step(probe: Probe) -> Check:
    """H7. Many steps beat one."""
    what = f"{probe.name}: robust accuracy under PGD above that under FGSM"
    return above("H7", what, probe.pgd, probe.survives(fgsm), (_STEP, 0.01))


def more_steps(probe: Probe) -> Check:
    """H8. Twice the steps break no more."""
    steps = 2 * probe.settings.steps
    longer = probe.survives(partial(pgd_worst, steps=steps, restarts=1), among=probe.pgd)
    what = f"{probe.name}: robust accuracy that twice the steps take away"
    return probe.noted(above("H8", what, probe.pgd, longer, (0.005, 0.02)), longer | ~probe.pgd)


def more_starts(probe: Probe) -> Check:
    """H10. Five starts break no more than one."""
    # The suite's own starts are among the five.
    rest = max(_STARTS - 1 - probe.settings.restarts, 1)
    attack = partial(pgd_worst, steps=probe.settings.steps, restarts=rest)
    many = probe.survives(attack, among=probe.once & probe.pgd)
    what = f"{probe.name}: robust accuracy that {_STARTS} starts take away from one"
    tried = probe.once & probe.pgd
    return probe.noted(above("H10", what, probe.once, many, (0.01, 0.03)), many | ~tried)


def losses_agree(probe: Probe) -> Check:
    """H11. Cross-entropy and a loss that is blind to scale find the same."""
    classes = probe.targets.clean[probe.name].shape[1]
    other = dlr if classes > 2 else margin
    attack = partial(pgd_worst, steps=probe.settings.steps, restarts=1, loss=other)
    other_left = probe.survives(attack)
    apart = abs(count(probe.once) - count(other_left))
    what = f"{probe.name}: robust accuracy under cross-entropy and under DLR, difference"
    return probe.noted(graded("H11", what, apart, len(probe), (0.01, 0.05)), other_left)


def eps_matters(probe: Probe) -> Check:
    """H12. Robust accuracy falls with eps: never a rise, and a clear fall from eps to 2 eps."""
    attack = partial(pgd_worst, steps=probe.settings.steps, restarts=1)
    half, double, fourfold = (
        probe.survives(attack, probe.scaled(factor)) for factor in (0.5, 2.0, 4.0)
    )
    total = len(probe)
    counts = [count(flags) for flags in (probe.right, half, probe.once, double, fourfold)]
    rise = max(after - before for before, after in itertools.pairwise(counts))
    flat = count(probe.once) > 0.05 * total and count(double) > count(probe.once) - max(
        0.01 * total, 1
    )
    # A threat that reaches everywhere cannot be doubled.
    flat = flat and probe.scaled(2.0).eps > 1.5 * probe.targets.threat.eps
    status: Status = "SUSPECT" if grade(rise, total, _STEP, 1.0) != "OK" else "OK"
    what = f"{probe.name}: robust accuracy at 2 eps, over that at eps"
    value = counts[3] / max(counts[2], 1)
    return Check("H12", what, value, "INVALID" if flat else status)


def unbounded(targets: Targets, evidence: Evidence) -> list[Check]:
    """H13. With eps as wide as the box every image can become any other: nothing may survive."""
    threat = targets.everywhere
    seed = derive(evidence.settings.seed, "health")
    twins = dict.fromkeys(targets.twin_of.values())
    survivors = {}
    for twin in twins:
        # Far from all data twin and engine differ more than on it, hence ten times the slack.
        steps, slack = evidence.settings.steps, 10 * evidence.slack
        attack = partial(pgd_worst, steps=steps, confidence=slack)
        images = craft(targets.twins[twin], targets.split, threat, seed, attack, targets.batch_size)
        survivors[twin] = targets.survivors(targets.logits(images, threat))
    checks = []
    for model, twin in (*((twin, twin) for twin in twins), *targets.twin_of.items()):
        left = survivors[twin][model]
        what = f"{model}: robust accuracy with eps as wide as the box"
        checks.append(graded("H13", what, count(left), len(left), (0.0, 0.01)))
    return checks


def noise_loses(probe: Probe, engine: str) -> Check:
    """H14. Uniform noise breaks nothing that PGD leaves."""
    targets, total = probe.targets, len(probe)
    whole = probe.evidence.survivors[direct_name(targets.twin_of[engine])][engine]
    left = whole[:total].clone()
    rng = ImageRandom(derive(probe.settings.seed, "health", "draws"), probe.split.indices)
    for _ in range(_DRAWS):
        noisy = starting_point(probe.x, targets.threat, rng, "uniform")
        noisy = deliverable(noisy, probe.x, targets.threat, targets.engines[engine])
        left &= is_correct(predict(targets.models[engine], noisy), probe.labels)
    what = f"{engine}: share of images that noise breaks and PGD does not"
    return above("H14", what, whole[:total], left, (_STEP, 0.01))


def anchor(targets: Targets, evidence: Evidence) -> list[Check]:
    """H23. A network that was never hardened must fall, or the attack or its eps is too weak.

    Nothing to say where no such network is among the twins, or where it is as it was drawn: who
    prunes from the start trains none, and what answers alike to everything withstands everything.
    """
    survivors = evidence.survivors.get(transfer_name(targets, PLAIN))
    if survivors is None:
        return []
    right = targets.survivors(targets.clean)[PLAIN].double().mean().item()
    if right < 2.0 / targets.clean[PLAIN].shape[1]:
        return []
    share = survivors[PLAIN].double().mean().item()
    what = f"{PLAIN}: robust accuracy of the network that was not hardened, white-box"
    left = count(survivors[PLAIN])
    # A person may have chosen an eps that a plain network partly withstands: never INVALID alone.
    status: Status = grade(left, len(survivors[PLAIN]), 0.015, 1.0)
    return [Check("H23", what, share, status)]
