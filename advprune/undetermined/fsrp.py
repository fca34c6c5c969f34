"""FSRP (Qian et al. 2023): the abstracts of preprint and journal only."""

from advprune.card import Card

CARD = Card(
    title="FSRP",
    paper="Qian et al., Robust Filter Pruning Guided by Deep Frequency-Features ..., SSRN 2023 "
    "(later in Neurocomputing)",
    year=2023,
    entry="FSRP",
    summary="removes the filters whose features of attacked images hold too much high frequency",
    equations=(
        "indicator of a filter: low-frequency components of its feature map divided by "
        "high-frequency ones, in Fourier space, at adversarial images",
        "in each layer by itself the filters with the lowest indicator go, layer after layer; then "
        "adversarial training goes on",
    ),
    structure="S",
    locality="L",
    criterion="LIS",
    missing=(
        "where low frequency ends, as a share of the spectrum or as a radius, and whether it "
        "depends on the size of the map; abstract only, no code is public",
        "what a component is: amplitudes or their squares, with or without the mean, summed or "
        "averaged; and whether maps are taken before or after batch norm and activation",
        "whether the ratio is taken for each image and then averaged, or of averages",
        "which attack makes the images and how many of them are read; whether a layer is scored "
        "again when those before it have lost filters",
    ),
)
