"""RFP (Lim et al. 2021): abstract and the benchmark's row only."""

from advprune.card import Card

CARD = Card(
    title="RFP",
    paper="Lim et al., Robustness-aware Filter Pruning for Robust Neural Networks ..., MLSP 2021",
    year=2021,
    entry="RFP",
    summary="removes the filters that take part in features which attacks can exploit",
    equations=(
        "trained without attacks, on images that hold robust features only (the robust data set "
        "of Ilyas et al. 2019); then the filters that go with features which are not robust are "
        "removed, once, in each layer by itself, and training goes on with the same images",
        "the benchmark names the criterion: the highest gradient magnitude goes",
    ),
    pretraining="robust data set",
    finetuning="robust data set",
    structure="S",
    locality="L",
    criterion="HGM",
    missing=(
        "which gradient: of which loss, in the weights of a filter or in its feature map, and on "
        "which images (robust, ordinary, or attacked ones); abstract only, no code is public",
        "how gradients become one number for a filter: over images, pixels and weights, signed or "
        "not, with which norm",
        "how many filters go, in which layers, and how long training goes on",
        "the robust data set it needs is another network's: images found by matching its features",
    ),
)
