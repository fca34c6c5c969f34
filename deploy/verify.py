"""Attacks on what ships: candidates from every source, replayed on every exported engine.

An engine has no gradient. So gradient attacks run on its differentiable twin and on its ancestors,
Square asks the engine itself, and every image found by any of them is shown to every engine,
whether or not it fooled the model it was made on. An engine's verdict on an image is the AND.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import InvalidEvaluation, accuracy
from advprune.types import Logits, Threat
from deploy.candidates import DIRECT, Planned, Settings, find, plan, transfer_name
from deploy.health import Check, Evidence, check_health
from deploy.replay import Engine, Targets, takes_bytes


@dataclass(frozen=True)
class Verification:
    """What was found out about the engines. Plain values throughout.

    Attributes:
        protocols: by engine, what its verdicts depend on beside its file.
        verdicts: by engine and attack, also "clean" and "worst": right or not, image by image.
        transfer: "sources", "targets" and "accuracy", one row per source.
        parity: by engine, its agreement with the twin.
        health: whether the evaluation itself can be believed.
    """

    protocols: dict[str, dict[str, Any]]
    verdicts: dict[str, dict[str, list[bool]]]
    transfer: dict[str, Any]
    parity: dict[str, dict[str, float]]
    health: list[Check]


def verify(
    twins: Mapping[str, nn.Module],
    engines: Mapping[str, Engine],
    test: Split,
    threat: Threat,
    data: str,
    settings: Settings | None = None,
) -> Verification:
    """Attack the engines and judge every image.

    Args:
        twins: differentiable networks by stage; "finetuned" is the float twin of the engines, the
            others are its ancestors.
        engines: exported models by name, distinct from those of the twins.
        test: the images, on the device of the twins.
        data: digest of the data set, for the protocol.

    Raises:
        Refused: no twin, no engine, or a name that stands for both.
        InvalidEvaluation: an attack broke its own threat model, or logits are not finite.
    """
    settings = settings or Settings()
    if DIRECT not in twins or not engines or set(twins) & set(engines):
        raise Refused(
            f"verify: needs a twin {DIRECT!r} and engines of other names, "
            f"got twins {sorted(twins)} and engines {sorted(engines)}"
        )
    targets = Targets(twins, engines, test, threat, settings.batch_size)
    slack = 2.0 * max(_gap(targets.clean, name).max().item() for name in engines)
    if not math.isfinite(slack):
        raise InvalidEvaluation("verify: an engine or its twin gives logits that are not finite")
    planned = plan(targets, settings, slack)
    candidates = find(targets, planned, settings)
    logits = {attack: targets.logits(images, threat) for attack, images in candidates.items()}
    survivors = {attack: targets.survivors(answers) for attack, answers in logits.items()}
    adversarial = logits[f"pgd-ce@{DIRECT}"]
    evidence = Evidence(candidates, survivors, adversarial, slack, settings.steps, settings.seed)
    return Verification(
        protocols={
            name: _protocol(targets, name, planned, settings.seed, data) for name in engines
        },
        verdicts={name: _verdicts(targets, survivors, name) for name in engines},
        transfer=_transfer(targets, survivors),
        parity={name: _parity(targets.clean, adversarial, name) for name in engines},
        health=check_health(targets, evidence),
    )


def _verdicts(
    targets: Targets, survivors: Mapping[str, Mapping[str, Tensor]], engine: str
) -> dict[str, list[bool]]:
    right = {"clean": targets.survivors(targets.clean)[engine]}
    right |= {attack: by_model[engine] for attack, by_model in survivors.items()}
    right["worst"] = torch.stack(list(right.values())).all(dim=0)
    return {name: flags.tolist() for name, flags in right.items()}


def _transfer(targets: Targets, survivors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    return {
        "sources": list(targets.twins),
        "targets": list(targets.models),
        "accuracy": [
            [accuracy(survivors[transfer_name(source)][target]) for target in targets.models]
            for source in targets.twins
        ],
    }


def _gap(logits: Mapping[str, Logits], engine: str) -> Tensor:
    """Absolute differences of logits between an engine and the twin, (N, K)."""
    return (logits[engine] - logits[DIRECT]).abs()


def _parity(
    clean: Mapping[str, Logits], adversarial: Mapping[str, Logits], engine: str
) -> dict[str, float]:
    """Agreement of an engine with the twin, on images and on adversarial ones; gaps on both."""

    def agreement(logits: Mapping[str, Logits]) -> float:
        return accuracy(logits[engine].argmax(dim=1) == logits[DIRECT].argmax(dim=1))

    gaps = torch.cat([_gap(clean, engine), _gap(adversarial, engine)])
    return {
        "argmax_agreement_clean": agreement(clean),
        "argmax_agreement_adversarial": agreement(adversarial),
        "max_logit_gap": gaps.max().item(),
        "mean_logit_gap": gaps.mean().item(),
    }


def _protocol(
    targets: Targets, engine: str, planned: list[Planned], seed: int, data: str
) -> dict[str, Any]:
    """What must be equal for two verdicts on an image to be comparable."""
    bytes_in = takes_bytes(targets.engines[engine])
    return {
        "data": data,
        "images": _sha256(targets.split.indices),
        "labels": _sha256(targets.split.labels),
        "threat": targets.threat.to_dict(),
        "attacks": [{"name": one.name, **one.protocol} for one in planned],
        "seed": seed,
        "input": "uint8 NHWC" if bytes_in else "float32 NCHW [0,1]",
    }


def _sha256(integers: Tensor) -> str:
    """Of int64 little-endian."""
    return hashlib.sha256(integers.cpu().numpy().astype("<i8").tobytes()).hexdigest()
