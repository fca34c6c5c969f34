"""Do the attacks on the engines agree with each other, and the engines with their twins?"""

import torch
from torch import Tensor

from advprune.evaluate import is_correct, predict
from deploy.candidates import direct_name, transfer_name
from deploy.health.check import Check, Evidence, above, count, graded
from deploy.replay import Targets, storable

_ASCENTS = ("pgd-", "apgd-", "bpda@")


def black_box(targets: Targets, evidence: Evidence, engine: str) -> list[Check]:
    """H15. Square must not do what gradients cannot.

    All gradient attacks together decide. One alone may lose to Square by a local optimum, which
    hides nothing while another finds the image: that is worth knowing, and no more. Searches for
    the nearest image are not aimed at this ball, and not compared alone.
    """
    survivors = {attack: models[engine] for attack, models in evidence.survivors.items()}
    gradient = {attack: survivors[attack] for attack in _gradient(targets, evidence, engine)}
    square = survivors[f"square@{engine}"]
    together = torch.stack(list(gradient.values())).all(dim=0)
    ascents = [flags for name, flags in gradient.items() if name.startswith(_ASCENTS)]
    weakest = max(ascents, key=count)
    what = f"{engine}: robust accuracy under {{}} above that under Square"
    both = what.format("all gradient attacks"), what.format("the weakest gradient attack")
    return [
        above("H15", both[0], together, square, (0.002, 0.01)),
        above("H15", both[1], weakest, square, (0.002, 1.0)),
    ]


def transfer(targets: Targets, evidence: Evidence, engine: str) -> Check:
    """H16. The attacks that aim at this engine must be the strongest."""
    survivors = {attack: models[engine] for attack, models in evidence.survivors.items()}
    aimed = [survivors[attack] for attack in _gradient(targets, evidence, engine)]
    own = targets.twin_of[engine]
    others = [transfer_name(targets, source) for source in targets.twins if source != own]
    what = f"{engine}: robust accuracy under direct attacks above that under the best transfer"
    if not others:
        return Check("H16", what, 0.0, "OK")
    strongest = min((survivors[name] for name in others), key=count)
    return above("H16", what, torch.stack(aimed).all(dim=0), strongest, (0.005, 0.02))


def _gradient(targets: Targets, evidence: Evidence, engine: str) -> list[str]:
    """The gradient attacks that aim at this engine."""
    own = [name for name in evidence.survivors if name.endswith(f"@{targets.twin_of[engine]}")]
    return [name for name in (f"bpda@{engine}", *own) if name in evidence.survivors]


def agreement(targets: Targets, evidence: Evidence, engine: str) -> list[Check]:
    """H20. The twin must stand for the engine.

    Adversarial images lie at the boundary by construction, where a rounding decides; each is
    scored on the engine itself, so disagreement there is noted, and on clean images it counts.
    """
    twin, checks = targets.twin_of[engine], []
    for kind, logits, invalid in (
        ("clean", targets.clean, 0.02),
        ("adversarial", evidence.logits[direct_name(twin)], 1.0),
    ):
        differing = count(logits[engine].argmax(dim=1) != logits[twin].argmax(dim=1))
        what = f"{engine}: share of {kind} images on which {twin} answers otherwise"
        checks.append(graded("H20", what, differing, len(targets.x), (0.005, invalid)))
    return checks


def survives_rounding(targets: Targets, evidence: Evidence, engine: str) -> Check:
    """H21. Adversarial images must still be adversarial in a file of 8-bit pixels."""
    left = targets.survivors(targets.clean)[engine].clone()
    for images in evidence.candidates.values():
        stored = storable(images, targets.x, targets.threat)
        logits = predict(targets.models[engine], stored, targets.batch_size)
        left &= is_correct(logits, targets.split.labels)
    what = f"{engine}: robust accuracy regained by rounding adversarial images to 8 bits"
    return above("H21", what, left, evidence.worst[engine], (0.005, 1.0))


def worst_case(targets: Targets, evidence: Evidence, engine: str) -> Check:
    """H24. The headline counts an image only if every answer of the engine was right."""
    answers = [targets.clean[engine], *(by[engine] for by in evidence.logits.values())]
    right = [is_correct(logits, targets.split.labels) for logits in answers]
    spared: Tensor = evidence.worst[engine] & ~torch.stack(right).all(dim=0)
    what = f"{engine}: images that the headline counts as right and some attack broke"
    return Check("H24", what, count(spared), "INVALID" if bool(spared.any()) else "OK")
