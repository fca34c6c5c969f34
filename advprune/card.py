"""The card of a pruning method: its paper, its row in the benchmark's taxonomy, its equations."""

from dataclasses import dataclass
from typing import Literal

# Abbreviations of the Adversarial Pruning Benchmark, in the order in which a legend reads best.
LEGEND = {
    "AT": "adversarial training",
    "NT": "natural training",
    "1S": "one shot",
    "IT": "iterative",
    "US": "unstructured",
    "S": "structured",
    "L": "each layer by itself",
    "G": "all layers together",
    "LWM": "lowest weight magnitude",
    "SOLWM": "lowest magnitude after a solver",
    "RELWM": "lowest magnitude under a regulariser",
    "LIS": "lowest importance score",
    "HGM": "highest gradient (magnitude)",
    "LGM": "lowest gradient magnitude",
}


@dataclass(frozen=True)
class Card:
    """Where a method comes from and what kind it is.

    Attributes:
        summary: what it does, in one line.
        equations: what it computes, step by step in words, with the numbers of the paper.
        departures: where this implementation leaves the paper or the released code, and why.
        entry: its name in the benchmark; "" where the benchmark does not list it.
        pipeline: whether it prunes after, before or during (adversarial) training.
        pretraining, finetuning: how the paper trains before and after, e.g. AT, TRADES, NT, none.
        shots: one shot (1S) or iterative (IT).
        structure: US, or US+S with the structures that this implementation offers.
        locality: L, G or both.
        criterion: an abbreviation of `LEGEND`, or a few words.
        missing: what its public description leaves open, so that there is no method of this card.
    """

    title: str
    paper: str
    year: int
    summary: str
    equations: tuple[str, ...]
    departures: tuple[str, ...] = ()
    entry: str = ""
    pipeline: Literal["after", "before", "during"] = "after"
    pretraining: str = "AT"
    finetuning: str = "AT"
    shots: Literal["1S", "IT"] = "1S"
    structure: str = "US"
    locality: Literal["L", "G", "L, G"] = "G"
    criterion: str = "LIS"
    missing: tuple[str, ...] = ()
