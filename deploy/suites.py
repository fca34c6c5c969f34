"""How hard an evaluation attacks: from a look that takes seconds to what a release must withstand.

Every suite names its images, so that two evaluations of a suite are about the same ones: the first
of the split, of which every beginning is stratified by class.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from advprune.errors import Refused

SuiteName = Literal["quick", "standard", "release"]


@dataclass(frozen=True)
class Settings:
    """How hard to attack.

    Args:
        images: of the split, from its beginning; all of it where it holds fewer.
        steps, restarts: of PGD; transfers and BPDA have one start.
        queries: of Square, for each engine and image.
        schedule: the number of queries that Square's patch sizes are laid out for; `queries` if
            None. AutoAttack lays its 5,000 out for 10,000.
        white: attacks on the twin of each engine, by name (see `candidates.plan`).
        thorough: more of them, on the twin of the last engine alone: the one that ships.
        fmn: steps of the search for the nearest adversarial image, which the security curve needs.
        apgd: steps of each target of APGD and FAB.
        more: attacks of the user's choice on the twin of each engine, as `attacks.spec` reads them.
        health: images, from the beginning, of the attacks that only check others.
        seed: of every random start and patch.
        batch_size: images at a time; changes no result.
    """

    images: int = 1000
    steps: int = 50
    restarts: int = 2
    queries: int = 1000
    schedule: int | None = None
    white: tuple[str, ...] = ("pgd-ce", "pgd-margin")
    thorough: tuple[str, ...] = ()
    fmn: int = 50
    apgd: int = 100
    more: tuple[str, ...] = ()
    health: int = 256
    seed: int = 0
    batch_size: int = 512


_SUITES = {
    "quick": Settings(images=200, restarts=1, queries=200, white=("pgd-ce",)),
    "standard": Settings(),
    "release": Settings(
        images=10_000,
        queries=5000,
        schedule=10_000,
        thorough=("apgd-ce", "apgd-t", "fab-t"),
        fmn=200,
    ),
}


def suite(name: str, **changes: Any) -> Settings:
    """The settings of a suite, but for the changes that are not None.

    Raises:
        Refused: there is no such suite.
    """
    if name not in _SUITES:
        raise Refused(f"suite {name!r} is not known; use one of {', '.join(get_args(SuiteName))}")
    return replace(_SUITES[name], **{key: v for key, v in changes.items() if v is not None})
