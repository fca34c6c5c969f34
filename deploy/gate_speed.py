"""Two engines timed in turn in one process: how much slower is one than the other?"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bench import interleaved
from deploy.errors import DeployError
from deploy.files import sha256
from deploy.runtime import load
from deploy.verdicts import Verdicts

ROUNDS = 5
_CALLS = 100
_WARMUP_S = 0.1


def ratios(
    engine: Path, previous: Path, baseline: Verdicts, images: NDArray[np.float32]
) -> list[float]:
    """The median time of one call, over that of the baseline's engine, for each of some rounds.

    Args:
        engine: the file under judgement.
        previous: the file that the baseline is about.
        images: float32 (N, C, H, W) in [0, 1].

    Raises:
        DeployError: 12, the previous file is not the baseline's; 66, there is none; 65, the files
            do not take these images; and as `load`.
    """
    if not previous.is_file():
        raise DeployError(f"--previous {previous}: no such file; give the baseline's engine", 66)
    digest = sha256(previous)
    if digest != baseline.artefact["sha256"]:
        raise DeployError(
            f"--previous {previous}: has digest {digest[:12]}, the baseline is about "
            f"{baseline.artefact['sha256'][:12]} ({baseline.artefact['file']}); give that file",
            12,
        )
    models = {"new": load(engine), "old": load(previous)}
    found: list[float] = []
    for _ in range(ROUNDS):
        timed = interleaved(models, images, warmup_s=_WARMUP_S, calls=_CALLS)
        found.append(timed["new"].p50_ms / timed["old"].p50_ms)
    return found
