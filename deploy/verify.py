"""Attacks on what ships: candidates from every source, replayed on every exported engine.

An engine has no gradient. So gradient attacks run on its differentiable twin and on its ancestors,
Square asks the engine itself, and every image found by any of them is shown to every engine,
whether or not it fooled the model it was made on. An engine's verdict on an image is the AND.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advprune.attacks.nearest import inside
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import SAME_LOGITS, InvalidEvaluation, accuracy
from advprune.types import Images, Logits, Threat
from deploy.candidates import (
    Keeping,
    direct_name,
    plan,
    transfer_name,
    unkept,
)
from deploy.curves import along, distances, security_curve
from deploy.gallery import Gallery, choose
from deploy.health import Check, Evidence, check_health
from deploy.protocol import protocol_of
from deploy.recording import Recording
from deploy.replay import Engine, Targets
from deploy.shared_search import find_all
from deploy.suites import Settings

RECORDED = 256  # images that go along with an engine, to be shown to it where it runs


@dataclass(frozen=True)
class Verification:
    """What was found out about the engines. Plain values throughout.

    Attributes:
        indices: the images, by their identities in the data set.
        protocols: by engine, what its verdicts depend on beside its file.
        verdicts: by engine and attack, also "clean" and "worst": right or not, image by image.
        transfer: "sources", "targets" and "accuracy", one row per source.
        curve: robust accuracy against eps, see `curves.security_curve`.
        parity: by engine, its agreement with its twin.
        health: whether the evaluation itself can be believed.
        recording: the first images, each with the candidate that fooled most engines.
        gallery: images that say most about 8 bits, where there are a float engine and one of those.
    """

    indices: list[int]
    protocols: dict[str, dict[str, Any]]
    verdicts: dict[str, dict[str, list[bool]]]
    transfer: dict[str, Any]
    curve: dict[str, Any]
    parity: dict[str, dict[str, float]]
    health: list[Check]
    recording: Recording
    gallery: Gallery | None

    @property
    def invalid(self) -> list[Check]:
        """The checks that forbid to believe the numbers."""
        return [check for check in self.health if check.status == "INVALID"]


def verify(
    twins: Mapping[str, nn.Module],
    engines: Mapping[str, Engine],
    test: Split,
    threat: Threat,
    data: str,
    settings: Settings | None = None,
    keeping: Keeping = unkept,
) -> Verification:
    """Attack the engines and judge every image.

    Args:
        twins: differentiable networks by name. `replay.twin_name(engine)` computes what that engine
            computes; the others are ancestors in the order of their descent, and the last of them
            stands for the engines that have no twin of their own.
        engines: exported models by name, distinct from those of the twins.
        test: the images, on the device of the twins; the suite takes the first of them.
        data: digest of the data set, for the protocol.
        keeping: has what attacks found in an earlier attempt at the very same.

    Raises:
        Refused: no image, no twin, no engine, a name that stands for both, or an attack that is
            not known.
        InvalidEvaluation: an attack broke its own threat model, logits are not finite, or a twin
            has no gradient.
    """
    settings = settings or Settings()
    return judge(accused(twins, engines, test, threat, settings), data, settings, keeping)


def accused(
    twins: Mapping[str, nn.Module],
    engines: Mapping[str, Engine],
    test: Split,
    threat: Threat,
    settings: Settings,
) -> Targets:
    """The engines on trial and what is known of them, on the first images. Raises as `verify`."""
    if not twins or not engines or set(twins) & set(engines):
        raise Refused(
            "verify: needs twins and engines of other names, "
            f"got twins {sorted(twins)} and engines {sorted(engines)}"
        )
    if not len(test) or settings.images < 1:
        raise Refused(
            f"verify: there is no image to attack ({len(test)} given, {settings.images} wanted); "
            "an empty set proves nothing"
        )
    split = test.first(settings.images)
    return Targets(twins, engines, split, threat, settings.batch_size)


def contribute(targets: Targets, settings: Settings, keeping: Keeping) -> None:
    """As another rank than the one that judges: attack this rank's share of the images.

    Raises:
        Refused, InvalidEvaluation: as `verify`.
    """
    find_all(targets, plan(targets, settings, _slack(targets)), settings, keeping)


def _slack(targets: Targets) -> float:
    """By how much, in logits, the margins of a twin and its engine differ."""
    gaps = (targets.gap(targets.clean, name) for name in targets.engines)
    slack = 2.0 * max(gap.max().item() for gap in gaps)
    if not math.isfinite(slack):
        raise InvalidEvaluation("verify: an engine or its twin gives logits that are not finite")
    return slack


def judge(
    targets: Targets, data: str, settings: Settings, keeping: Keeping = unkept
) -> Verification:
    """Attack the engines among the targets, of which there is one, on their images.

    Of several ranks each attacks its share of them; the others `contribute`.

    Raises:
        Refused, InvalidEvaluation: as `verify`.
    """
    split, threat, engines = targets.split, targets.threat, targets.engines
    slack = _slack(targets)
    planned = plan(targets, settings, slack)
    candidates, nearest = find_all(targets, planned, settings, keeping)
    candidates |= {
        name: inside(targets.twins[twin], targets.x, split.labels, end, threat)
        for name, (twin, end) in nearest.items()
    }
    logits = {attack: targets.logits(images, threat) for attack, images in candidates.items()}
    survivors = {attack: targets.survivors(answers) for attack, answers in logits.items()}
    lines = {
        name: {engine: along(targets, engine, end) for engine in engines}
        for name, (_, end) in nearest.items()
    }
    for name, line in lines.items():
        for engine, found in line.items():
            survivors[name][engine] &= found > threat.eps
    verdicts = {name: _verdicts(targets, survivors, name) for name in engines}
    worst = {name: flags["worst"] for name, flags in verdicts.items()}
    found = distances(targets, candidates, lines)
    evidence = Evidence(candidates, logits, survivors, worst, slack, settings)
    return Verification(
        indices=split.indices.tolist(),
        protocols={name: protocol_of(targets, name, planned, settings, data) for name in engines},
        verdicts={
            engine: {name: flags.tolist() for name, flags in by_attack.items()}
            for engine, by_attack in verdicts.items()
        },
        transfer=_transfer(targets, survivors),
        curve=security_curve(found, threat),
        parity={name: _parity(targets, logits, name) for name in engines},
        health=check_health(targets, evidence),
        recording=_record(targets, candidates, survivors),
        gallery=choose(targets, candidates, logits, worst),
    )


def _verdicts(
    targets: Targets, survivors: Mapping[str, Mapping[str, Tensor]], engine: str
) -> dict[str, Tensor]:
    right = {"clean": targets.survivors(targets.clean)[engine]}
    right |= {attack: by_model[engine] for attack, by_model in survivors.items()}
    right["worst"] = torch.stack(list(right.values())).all(dim=0)
    return right


def _transfer(targets: Targets, survivors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    rows = [survivors[transfer_name(targets, source)] for source in targets.twins]
    return {
        "sources": list(targets.twins),
        "targets": list(targets.models),
        "accuracy": [[accuracy(row[target]) for target in targets.models] for row in rows],
    }


def _parity(
    targets: Targets, logits: Mapping[str, Mapping[str, Logits]], engine: str
) -> dict[str, float]:
    """Agreement of an engine with its twin, on images and on adversarial ones; gaps on both."""
    twin = targets.twin_of[engine]
    adversarial = logits[direct_name(twin)]

    def agreement(answers: Mapping[str, Logits]) -> float:
        return accuracy(answers[engine].argmax(dim=1) == answers[twin].argmax(dim=1))

    gaps = torch.cat([targets.gap(targets.clean, engine), targets.gap(adversarial, engine)])
    return {
        "argmax_agreement_clean": agreement(targets.clean),
        "argmax_agreement_adversarial": agreement(adversarial),
        "max_logit_gap": gaps.max().item(),
        "mean_logit_gap": gaps.mean().item(),
        "rows_differing": accuracy(gaps.amax(dim=1) > SAME_LOGITS),
    }


def _record(
    targets: Targets,
    candidates: Mapping[str, Images],
    survivors: Mapping[str, Mapping[str, Tensor]],
) -> Recording:
    """The first images and, of all candidates for each, the first of those that fool most."""
    fooled = [
        sum((~by_model[engine]).int() for engine in targets.engines)
        for by_model in survivors.values()
    ]
    most = torch.stack([torch.as_tensor(count) for count in fooled]).argmax(dim=0).tolist()
    names = list(survivors)
    chosen = [candidates[names[attack]][image] for image, attack in enumerate(most[:RECORDED])]
    return Recording(
        clean=targets.split.images[:RECORDED].cpu().numpy(),
        adversarial=torch.stack(chosen).cpu().numpy(),
        labels=targets.split.labels[:RECORDED].cpu().numpy(),
        indices=targets.split.indices[:RECORDED].cpu().numpy(),
    )
