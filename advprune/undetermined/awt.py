"""AWT: a mask at initialisation that keeps the dynamics of adversarial training."""

from advprune.card import Card

CARD = Card(
    title="AWT",
    paper="Shi et al., Finding Dynamics Preserving Adversarial Winning Tickets, AISTATS 2022",
    year=2022,
    entry="AWT",
    summary="masks random weights so that adversarial training goes as in the dense network",
    equations=(
        "adversarial training is described by a kernel of gradients at attacked images (NTK)",
        "a mask of the initialisation is sought whose training follows that of the dense network",
        "the ticket is then trained adversarially from its initialisation",
    ),
    pipeline="before",
    criterion="LWM",
    missing=(
        "the distance between the two trainings: which outputs and kernels are compared, on which "
        "attacked images, in which norm and with which weights; the abstract only says preserved",
        "how the mask is found: its scores, their start, optimiser, rate and steps, and whether "
        "weights learn along",
        "how the budget is shared among layers: the benchmark lists no locality",
        "what the benchmark's criterion, lowest magnitude, means for a mask that is optimised",
        "found in public: the abstract and the benchmark's row; no code",
    ),
)
