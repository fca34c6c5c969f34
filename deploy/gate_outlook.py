"""What a gate will be able to tell with so many images, said before anything is computed.

Standard library only, like the gate.
"""

from dataclasses import dataclass

from deploy.outcome import percent, points
from deploy.policies import Terms
from deploy.power import (
    POWER,
    chance_to_ship,
    images_in_words,
    images_to_find,
    images_to_ship,
    minimum_detectable_drop,
)

CHANGED = 0.05  # of the verdicts, as between two trainings of one network


@dataclass(frozen=True)
class Outlook:
    """What can be expected where 5 % of the verdicts change.

    Attributes:
        images: that the gate will judge by.
        detectable_drop: what the paired test finds in four of five cases.
        chance_to_ship: how often an engine that lost nothing passes; None if `ship` is not asked.
        lines: the same in words.
        warnings: what is too little, and how many images would do.
    """

    images: int
    detectable_drop: float
    chance_to_ship: float | None
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def outlook(images: int, terms: Terms) -> Outlook | None:
    """What these terms can tell with so many images; None where nothing is compared."""
    margins = terms.paired
    if not margins:
        return None
    drop = minimum_detectable_drop(images, CHANGED)
    premise = f"gate: {images} images; where {CHANGED:.0%} of the verdicts change"
    lines = [f"{premise}, a drop of {points(drop)} is found in four of five cases"]
    warnings: list[str] = []
    if "regress" in margins and drop > 2 * margins["regress"]:
        twice = 2 * margins["regress"]
        wanted = images_in_words(images_to_find(twice, CHANGED)) if twice else "a margin"
        warnings.append(
            f"gate: finds drops from {points(drop)} on, more than twice the margin of "
            f"{points(margins['regress'])}; {points(twice)} takes {wanted}"
        )
    chance = None
    if "ship" in margins:
        margin = margins["ship"]
        chance = chance_to_ship(images, CHANGED, margin) if margin else 0.0
        lines.append(f"{premise} and nothing is lost, it ships in {percent(chance)} of all cases")
        if chance < POWER:
            wanted = images_in_words(images_to_ship(CHANGED, margin)) if margin else "a margin"
            warnings.append(
                f"gate: what lost nothing ships in {percent(chance)} of all cases within "
                f"{points(margin)}; four of five takes {wanted}"
            )
    return Outlook(images, drop, chance, tuple(lines), tuple(warnings))
