"""H22: does the attack find an adversarial image that is known to be there?

For each image, a binary question is put on top of the network: a threshold on a random direction of
its logits, chosen so that the image and random images near it lie below, and one random corner of
the ball above. A sound attack then finds some image of the ball that lies above. An attack that
fails here would also have failed on a network that is not robust. (After the test of Zimmermann et
al. 2022, with a closed form in place of their fitted classifier.)
"""

from functools import partial

import torch
from torch import Tensor

from advprune.attacks.pgd import starting_point
from advprune.attacks.pgd_worst import pgd_worst
from advprune.evaluate import predict
from advprune.frozen import frozen
from advprune.repro import ImageRandom, derive
from advprune.types import Images, Logits
from deploy.health.check import Check, Probe, Status, count, grade

_IMAGES = 64
_INNER, _CORNERS = 30, 50


def planted_hole(probe: Probe) -> Check:
    """H22. Share of planted adversarial images that PGD misses."""
    x, threat = probe.x[:_IMAGES], probe.targets.threat
    rng = ImageRandom(derive(probe.settings.seed, "planted"), probe.split.indices[:_IMAGES])
    with frozen(probe.twin):
        classes = predict(probe.twin, x[:1]).shape[1]
        direction = rng.normal(classes)
        # What the softmax does not see, an attack need not either.
        direction = direction - direction.mean(dim=1, keepdim=True)

        def projected(images: Images) -> Tensor:
            return (probe.twin(images) * direction).sum(dim=1)

        with torch.no_grad():
            near = [
                projected(starting_point(x, probe.scaled(0.5), rng, "uniform"))
                for _ in range(_INNER)
            ]
            below = torch.stack([projected(x), *near]).amax(dim=0)
            corners = [rng.normal(*x.shape[1:]) for _ in range(_CORNERS)]
            above = torch.stack(
                [projected(threat.project(x + threat.eps * threat.steepest(c), x)) for c in corners]
            ).amax(dim=0)
        threshold = (below + above) / 2
        planted = above > below

        def question(images: Images) -> Logits:
            """(N, 2): class 1 above the threshold. Rows stand for images, so none may leave."""
            height = projected(images) - threshold
            return torch.stack([torch.zeros_like(height), height], dim=1)

        attack = partial(pgd_worst, steps=probe.settings.steps, confidence=float("inf"))
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        with torch.no_grad():
            found = question(attack(question, x, zeros, threat, rng.fork("attack")))[:, 1] > 0
    what = f"{probe.name}: share of planted adversarial images that PGD does not find"
    total, missed = count(planted), count(planted & ~found)
    # Where nothing moves the logits, nothing can be planted: that tells nothing for the attack.
    status: Status = grade(missed, total, 0.02, 0.05) if total else "SUSPECT"
    return Check("H22", what, missed / max(total, 1), status)
