"""What an engine was asked, so that nobody compares answers to different questions."""

from collections.abc import Sequence
from typing import Any

from deploy.candidates import Planned
from deploy.recording import digest_of_integers
from deploy.replay import Targets, takes_bytes
from deploy.suites import Settings


def protocol_of(
    targets: Targets, engine: str, planned: Sequence[Planned], settings: Settings, data: str
) -> dict[str, Any]:
    """What must be equal for two verdicts on an image to be comparable."""
    attacks = [{"name": one.name, **one.protocol} for one in planned]
    twins = dict.fromkeys(targets.twin_of.values())
    attacks += [{"name": f"fmn@{twin}", "steps": settings.fmn} for twin in twins]
    bytes_in = takes_bytes(targets.engines[engine])
    return {
        "data": data,
        "images": digest_of_integers(targets.split.indices.cpu().numpy()),
        "labels": digest_of_integers(targets.split.labels.cpu().numpy()),
        "threat": targets.threat.to_dict(),
        "attacks": attacks,
        "seed": settings.seed,
        "input": "uint8 NHWC" if bytes_in else "float32 NCHW [0,1]",
    }
