"""A verification by several ranks is the verification by one, bit by bit."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from attack_nets import digit_net, digits
from engines import Engine, Info
from on_ranks import on_ranks
from torch import nn

from advprune import ranks
from advprune.types import Threat
from deploy.suites import Settings
from deploy.verify import Verification, contribute, verify
from deploy.verify import accused as on_trial
from pipeline.checkpoints import Checkpoints

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

THREAT = Threat(0.1)
SPLIT = digits(60)
# Seven batches, the last of them short.
SETTINGS = Settings(steps=5, restarts=2, queries=20, fmn=5, health=20, batch_size=9)


def accused() -> tuple[dict[str, nn.Module], dict[str, Engine]]:
    twins: dict[str, nn.Module] = {"standard": digit_net(), "finetuned": digit_net(THREAT)}
    net = digit_net(THREAT)
    return twins, {"fp32": Engine(net), "int8": Engine(net, Info(precision="int8"))}


def plain(found: Verification) -> dict[str, Any]:
    arrays = {name: value for name, value in vars(found.recording).items()}
    pixels = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in arrays.items()}
    words = {k: v for k, v in vars(found).items() if k not in ("recording", "gallery", "health")}
    health = [asdict(check) for check in found.health]
    return json.loads(json.dumps({**words, "health": health, "pixels": pixels}, default=str))


def take_part(folder: Path) -> None:
    def attack(settings: Settings) -> None:
        kept = folder / str(settings.batch_size)
        kept.mkdir()
        checkpoints = Checkpoints(kept, lambda _: None)
        given = (*accused(), SPLIT, THREAT)
        if ranks.number():
            contribute(on_trial(*given, settings), settings, checkpoints.kept)
        else:
            found = verify(*given, "d", settings, checkpoints.kept)
            (folder / f"{settings.batch_size}.json").write_text(json.dumps(plain(found)))

    attack(SETTINGS)
    attack(replace(SETTINGS, batch_size=50))  # two batches, for more ranks


@pytest.mark.parametrize("count", [2, 4])
def test_the_number_of_ranks_changes_no_bit(count: int, tmp_path: Path) -> None:
    on_ranks(count, take_part, tmp_path)
    for size in (9, 50):
        alone = plain(verify(*accused(), SPLIT, THREAT, "d", replace(SETTINGS, batch_size=size)))
        assert json.loads((tmp_path / "0" / f"{size}.json").read_text()) == alone
    # Each has kept what it found, of its images alone.
    for rank in range(count):
        assert len(list((tmp_path / str(rank) / "9").glob(".checkpoint-of-*"))) > 0
