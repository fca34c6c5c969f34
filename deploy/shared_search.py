"""The attacks of a verification, by one process or by several ranks, each on its images."""

from collections.abc import Sequence

import torch

from advprune import ranks
from advprune.attacks.nearest import Nearest
from advprune.rank_rows import blocks, in_order
from advprune.types import Images
from deploy.candidates import Keeping, Planned, find, find_nearest
from deploy.replay import Targets
from deploy.suites import Settings

Found = tuple[dict[str, Images], dict[str, tuple[str, Nearest]]]


def find_all(
    targets: Targets, planned: Sequence[Planned], settings: Settings, keeping: Keeping
) -> Found:
    """What `find` and `find_nearest` give, on every rank, in the same bits as by one process.

    Ranks take whole batches in turn, so that each is computed as it would be otherwise.

    Raises:
        InvalidEvaluation: as both.
    """
    mine = blocks(len(targets.split), settings.batch_size)
    candidates: dict[str, Images] = {}
    nearest: dict[str, tuple[str, Nearest]] = {}
    if mine:
        part = targets if ranks.count() == 1 else targets.of(torch.cat(mine))
        candidates = find(part, list(planned), settings, keeping)
        nearest = find_nearest(part, settings, keeping)
    nothing = targets.x[:0]

    def whole(part: torch.Tensor) -> torch.Tensor:
        return in_order(part, len(targets.split), settings.batch_size)

    twins = dict.fromkeys(targets.twin_of.values())
    none = Nearest(nothing, nothing.new_zeros(0))
    ends = {f"fmn@{twin}": nearest.get(f"fmn@{twin}", (twin, none)) for twin in twins}
    return (
        {one.name: whole(candidates.get(one.name, nothing)) for one in planned},
        {name: (twin, Nearest(*map(whole, end))) for name, (twin, end) in ends.items()},
    )
