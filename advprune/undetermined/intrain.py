"""In-train pruning: masks learned together with weights, under a fast attack (Vemparala 2021)."""

from advprune.card import Card

CARD = Card(
    title="InTrain",
    paper="Vemparala et al., Adversarial Robust Model Compression using In-Train Pruning, "
    "CVPR Workshops 2021",
    year=2021,
    entry="InTrain",
    summary="learns weights and pruning masks in one objective, by fast adversarial training",
    equations=(
        "one objective for both, adversarial training and pruning, from random weights on; no "
        "pretrained model, no hand-made rule for what goes",
        "adversarial images by a single step (Fast-AT; here the objective fgsm-rs)",
        "single weights or channels, of all layers together, by a learned importance",
        "reported: ResNet-20 on CIFAR-10 with 85 % fewer parameters, 6.21 points more accuracy "
        "than earlier work",
    ),
    pipeline="during",
    pretraining="none",
    finetuning="none",
    structure="US+S",
    locality="G",
    criterion="LIS",
    missing=(
        "read were the abstract and the row of the benchmark; the body of the paper was out of "
        "reach, and no code is public",
        "what a mask is a function of, a score or a threshold for each weight, channel or layer, "
        "and which gradient passes through its step",
        "the term that presses for sparsity, its weight, and what brings it to an asked share",
        "where the masks start, their optimiser and learning rate, and when they stop changing",
        "which channels go together where layers are added",
        "radius and step of the attack, epochs and schedule",
    ),
)
