"""Luo23 (Luo et al. 2023): the benchmark's row only."""

from advprune.card import Card

CARD = Card(
    title="Luo23",
    paper="Luo et al., Towards ... (IEEE Xplore 10332249), 2023",
    year=2023,
    entry="Luo23",
    summary="removes the least important filters of each layer, between adversarial trainings",
    equations=(
        "adversarial training; in each layer by itself the filters with the lowest importance "
        "score go, once; adversarial training",
    ),
    structure="S",
    locality="L",
    criterion="LIS",
    missing=(
        "the importance score itself: neither text nor abstract nor code was to be found, only "
        "the benchmark's row, which names its kind",
        "how many filters each layer loses",
        "the attack, the losses and the length of both trainings",
    ),
)
