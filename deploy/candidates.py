"""Which attacks an exported engine must withstand, and the images that they find.

An engine has no gradient of its own, so there are four ways to it: through its differentiable twin,
through its twin's gradient at the engine's own answers, through its ancestors, and by asking it
alone.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from advprune.attacks import Attack, fmn
from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t
from advprune.attacks.fab_t import fab_t
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.nearest import Nearest
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.spec import parse
from advprune.attacks.square import square
from advprune.evaluate import craft, search
from advprune.repro import derive
from advprune.spans import span
from advprune.types import Classifier, Images, Threat
from deploy.parallel import each
from deploy.replay import Bpda, Targets, is_quantised, reachable
from deploy.suites import Settings

Protocol = dict[str, str | int]
# Gives what was made under a name before, else has it made, on the CPU.
Keeping = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


def unkept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Makes everything anew."""
    return make()


@dataclass(frozen=True)
class Planned:
    """One attack: whom it asks, under which threat, and what the protocol says of it."""

    name: str
    asks: Literal["twin", "engine", "both"]  # "both" also where it may not share the process
    model: Classifier
    threat: Threat
    attack: Attack
    protocol: Mapping[str, str | int]


def direct_name(twin: str) -> str:
    """The attack whose images stand for all that a gradient finds on a twin."""
    return f"pgd-ce@{twin}"


def transfer_name(targets: Targets, source: str) -> str:
    """The attack whose images stand for what a network's gradient finds."""
    return direct_name(source) if source in targets.twin_of.values() else f"transfer@{source}"


def _white(settings: Settings, slack: float) -> dict[str, tuple[Callable[..., Images], Protocol]]:
    """The white-box attacks that a suite may name.

    An image leaves an attack on a twin only once it is wrong by more than the twin's and an
    engine's margins differ: one that has barely crossed the twin's boundary may lie on the engine's
    right side.
    """
    pgd = partial(pgd_worst, steps=settings.steps, restarts=settings.restarts, confidence=slack)
    starts: Protocol = {"steps": settings.steps, "restarts": settings.restarts}
    starts |= {"first_step": "2 eps", "until": "margin > 2 x clean logit gap"}
    per_target: Protocol = {"steps": settings.apgd, "until": "margin > 2 x clean logit gap"}
    return {
        "pgd-ce": (partial(pgd, loss=cross_entropy), starts | {"loss": "ce"}),
        "pgd-margin": (partial(pgd, loss=margin), starts | {"loss": "margin"}),
        "apgd-ce": (
            partial(apgd, steps=settings.apgd, confidence=slack),
            per_target | {"loss": "ce"},
        ),
        "apgd-t": (
            partial(apgd_t, steps=settings.apgd, confidence=slack),
            per_target | {"loss": "dlr", "targets": 9},
        ),
        "fab-t": (partial(fab_t, steps=settings.apgd), {"steps": settings.apgd, "targets": 9}),
    }


def plan(targets: Targets, settings: Settings, slack: float) -> list[Planned]:
    """All attacks, white-box ones first.

    Args:
        slack: by how much, in logits, the margins of a twin and its engine differ.

    Raises:
        Refused: an attack of the user's choice is not known.
    """
    threat, planned = targets.threat, []
    direct = dict.fromkeys(targets.twin_of.values())
    known = _white(settings, slack)
    ships = list(targets.twin_of.values())[-1]
    for twin in direct:
        for name in (*settings.white, *(settings.thorough if twin == ships else ())):
            attack, protocol = known[name]
            model = targets.twins[twin]
            planned.append(Planned(f"{name}@{twin}", "twin", model, threat, attack, protocol))
        for spec in settings.more:
            model, attack = targets.twins[twin], parse(spec)
            protocol = {"settings": spec}
            planned.append(Planned(f"{spec}@{twin}", "both", model, threat, attack, protocol))
    for name, engine in targets.engines.items():
        if is_quantised(engine):
            model = Bpda(targets.twins[targets.twin_of[name]], targets.models[name])
            attack = partial(pgd_worst, steps=settings.steps, restarts=1)
            protocol = {"steps": settings.steps, "restarts": 1, "first_step": "2 eps"}
            protocol |= {"loss": "ce", "until": "broken"}
            limit = reachable(threat, engine)
            planned.append(Planned(f"bpda@{name}", "both", model, limit, attack, protocol))
    # How far an image must cross its source's boundary to fool another net is not known: go on.
    # By margin: where an ancestor is very sure, the gradient of cross-entropy vanishes. Of half
    # the steps, since none of them leaves early.
    halfway = max(settings.steps // 2, 1)
    through = partial(pgd_worst, steps=halfway, restarts=1, loss=margin, confidence=math.inf)
    for name, source in targets.twins.items():
        if name not in direct:
            protocol = {"steps": halfway, "restarts": 1, "first_step": "2 eps"}
            protocol |= {"loss": "margin", "until": "the end"}
            named = transfer_name(targets, name)
            planned.append(Planned(named, "twin", source, threat, through, protocol))
    for name, engine in targets.engines.items():
        model, limit = targets.models[name], reachable(threat, engine)
        schedule = settings.schedule or settings.queries
        attack = partial(square, queries=settings.queries, schedule=schedule)
        protocol = {"queries": settings.queries, "schedule": schedule}
        planned.append(Planned(f"square@{name}", "engine", model, limit, attack, protocol))
    return planned


def find(
    targets: Targets, planned: list[Planned], settings: Settings, keeping: Keeping = unkept
) -> dict[str, Images]:
    """Adversarial images by attack, float32 (N, C, H, W).

    Args:
        keeping: has what an attack found in an earlier attempt.

    Raises:
        InvalidEvaluation: an attack broke its own threat model.
    """

    def run(one: Planned) -> Images:
        # A network of its own for each thread: attacks put what they ask into another mode.
        model = deepcopy(one.model) if one.asks == "twin" else one.model
        seed = derive(settings.seed, one.name)

        def make() -> dict[str, Tensor]:
            found = craft(model, targets.split, one.threat, seed, one.attack, settings.batch_size)
            return {"images": found}

        with span(f"crafting {one.name}"):
            return keeping(one.name, make)["images"].to(targets.x.device)

    # What asks two at once comes first and alone, and so do attacks that draw from global
    # generators. Then the engines and the longest attacks, so that none is waited for at the end.
    found = {one.name: run(one) for one in planned if one.asks == "both"}
    apart = [one for one in reversed(planned) if one.asks != "both"]
    found |= zip((one.name for one in apart), each(run, apart), strict=True)
    return {one.name: found[one.name] for one in planned}


def find_nearest(
    targets: Targets, settings: Settings, keeping: Keeping = unkept
) -> dict[str, tuple[str, Nearest]]:
    """The nearest adversarial images of each engine's twin, by the name of the attack."""
    tuning = fmn.Tuning(steps=settings.fmn)
    if targets.threat.norm == "linf":
        # On hardened networks the sign finds images a fifth nearer than the gradient itself.
        tuning = replace(tuning, direction="sign", step_size=targets.threat.eps)
    searching = partial(fmn.nearest, tuning=tuning)
    names = {f"fmn@{twin}": twin for twin in targets.twin_of.values()}

    def run(name: str) -> Nearest:
        net, seed = deepcopy(targets.twins[names[name]]), derive(settings.seed, name)

        def make() -> dict[str, Tensor]:
            split, threat, size = targets.split, targets.threat, settings.batch_size
            return search(net, split, threat, seed, searching, size)._asdict()

        with span(f"crafting {name}"):
            found = keeping(name, make)
        return Nearest(**{key: tensor.to(targets.x.device) for key, tensor in found.items()})

    found = each(run, list(names))
    return {name: (names[name], end) for name, end in zip(names, found, strict=True)}
