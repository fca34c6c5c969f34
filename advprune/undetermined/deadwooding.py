"""Deadwooding: global pruning by a Lagrangian dual method (Kaur et al. 2022)."""

from advprune.card import Card

CARD = Card(
    title="Deadwooding",
    paper="Kaur et al., Deadwooding: Robust Global Pruning for Deep Neural Networks, 2022",
    year=2022,
    entry="Deadwooding",
    summary="trains towards sparse weights by a Lagrangian dual method, cuts, and distils",
    equations=(
        "a Lagrangian dual method encourages sparsity while the network is trained for accuracy "
        "and robustness",
        "the lowest magnitudes of all layers together go, once",
        "what is left is trained again by knowledge distillation on images attacked by FGSM",
    ),
    pretraining="none",
    finetuning="KD",
    locality="G",
    criterion="SOLWM",
    missing=(
        "the constraint that the multipliers belong to: a norm of the weights, a count of them or "
        "a penalty on those below a threshold, of each layer or of all",
        "how the multipliers move: their step, how often, and from where; and what stops them",
        "the loss of the search, clean or attacked, and what training there is before it",
        "the loss afterwards: teacher, temperature, the share of the teacher, and whether it "
        "answers to clean or to attacked images",
        "the radius of FGSM, epochs and rates",
        "public are the abstract, without equations, and the benchmark's row; no code was found",
    ),
)
