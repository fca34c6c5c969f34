"""Which attacks an exported engine must withstand, and the images that they find.

An engine has no gradient of its own, so there are four ways to it: through its float twin, through
its twin's gradient at its own answers, through its ancestors, and by asking it alone.
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from advprune.attacks import Attack
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.pgd_worst import pgd_worst
from advprune.attacks.square import square
from advprune.evaluate import craft
from advprune.repro import derive
from advprune.types import Classifier, Images, Threat
from deploy.replay import Bpda, Engine, Targets, reachable

DIRECT = "finetuned"
_SHORT = {cross_entropy: "ce", margin: "margin"}


@dataclass(frozen=True)
class Settings:
    """How hard to attack.

    Args:
        steps, restarts: of each white-box attack; transfers have one start.
        queries: of Square, for each engine and image.
        seed: of every random start and patch.
        batch_size: images at a time; changes no result.
    """

    steps: int = 50
    restarts: int = 2
    queries: int = 1000
    seed: int = 0
    batch_size: int = 512


@dataclass(frozen=True)
class Planned:
    """One attack: whom it asks, under which threat, and what the protocol says of it."""

    name: str
    asks: Literal["twin", "engine", "both"]
    model: Classifier
    threat: Threat
    attack: Attack
    protocol: Mapping[str, str | int]


def is_quantised(engine: Engine) -> bool:
    """Whether the engine computes something else than its float twin."""
    return engine.info.precision != "fp32"


def transfer_name(twin: str) -> str:
    """The attack that holds the cross-entropy PGD images of a twin."""
    return f"pgd-ce@{twin}" if twin == DIRECT else f"transfer@{twin}"


def plan(targets: Targets, settings: Settings, slack: float) -> list[Planned]:
    """All attacks, white-box ones first.

    Args:
        slack: by how much, in logits, the margins of the twin and an engine differ. An image leaves
            an attack on the twin only once it is wrong by more: one that has barely crossed the
            twin's boundary may lie on the engine's right side.
    """
    twin, threat = targets.twins[DIRECT], targets.threat
    starts = {"steps": settings.steps, "restarts": settings.restarts, "first_step": "2 eps"}
    white = partial(pgd_worst, steps=settings.steps, restarts=settings.restarts)
    planned = []
    for loss in (cross_entropy, margin):
        name = f"pgd-{_SHORT[loss]}@{DIRECT}"
        protocol = starts | {"loss": _SHORT[loss], "until": "margin > 2 x clean logit gap"}
        attack = partial(white, loss=loss, confidence=slack)
        planned.append(Planned(name, "twin", twin, threat, attack, protocol))
    for name, engine in targets.engines.items():
        if is_quantised(engine):
            model, limit = Bpda(twin, targets.models[name]), reachable(threat, engine)
            protocol = starts | {"loss": "ce", "until": "broken"}
            planned.append(Planned(f"bpda@{name}", "both", model, limit, white, protocol))
    # How far an image must cross its source's boundary to fool another net is not known: go on.
    through = partial(pgd_worst, steps=settings.steps, restarts=1, confidence=math.inf)
    for name, source in targets.twins.items():
        if name != DIRECT:
            protocol = starts | {"restarts": 1, "loss": "ce", "until": "the end"}
            planned.append(Planned(transfer_name(name), "twin", source, threat, through, protocol))
    for name, engine in targets.engines.items():
        model, limit = targets.models[name], reachable(threat, engine)
        attack = partial(square, queries=settings.queries)
        protocol = {"queries": settings.queries}
        planned.append(Planned(f"square@{name}", "engine", model, limit, attack, protocol))
    return planned


def find(targets: Targets, planned: list[Planned], settings: Settings) -> dict[str, Images]:
    """Adversarial images by attack, float32 (N, C, H, W).

    Raises:
        InvalidEvaluation: an attack broke its own threat model.
    """

    def run(one: Planned) -> Images:
        seed = derive(settings.seed, one.name)
        return craft(one.model, targets.split, one.threat, seed, one.attack, settings.batch_size)

    # Engines work in threads of their own while the twins are attacked. Neither need bear two
    # callers at once, so whatever asks both comes first.
    found = {one.name: run(one) for one in planned if one.asks == "both"}
    with ThreadPoolExecutor() as pool, _cores_left_for(len(targets.engines)):
        asked = {one.name: pool.submit(run, one) for one in planned if one.asks == "engine"}
        found |= {one.name: run(one) for one in planned if one.asks == "twin"}
        found |= {name: future.result() for name, future in asked.items()}
    return {one.name: found[one.name] for one in planned}


@contextmanager
def _cores_left_for(others: int) -> Iterator[None]:
    """Torch's threads wait for each other by spinning: sharing a core slows them tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - others))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
