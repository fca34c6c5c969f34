"""FRE (Zhuang et al. 2023): abstract and the benchmark's row only."""

from advprune.card import Card

CARD = Card(
    title="FRE",
    paper="Zhuang et al., Adversarial Network Pruning by Filter Robustness Estimation, ICASSP 2023",
    year=2023,
    entry="FRE",
    summary="removes the filters that are estimated to contribute least to the adversarial loss",
    equations=(
        "importance of a filter: an estimate of what it contributes to the adversarial training "
        "loss (TRADES, says the benchmark)",
        "filters go step by step, the lowest importance of all layers first, with adversarial "
        "training in between and afterwards",
    ),
    pretraining="TRADES",
    finetuning="TRADES",
    shots="IT",
    structure="S",
    locality="G",
    criterion="LIS",
    missing=(
        "the estimate: whether the loss's change is taken to first order, to second order or "
        "measured, of weights or of feature maps, squared or not; abstract only, no code is public",
        "how layers of different size are made comparable for one order",
        "over which images the estimate runs, and whether it is carried from step to step",
        "how many filters go in a step, how many steps there are, and how long training takes "
        "between them",
    ),
)
