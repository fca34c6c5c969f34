"""Wang20: a study of adversarial pruning, and training of large networks from pruned ones."""

from advprune.card import Card

CARD = Card(
    title="Robustness via sparsity",
    paper="Wang et al., Achieving Adversarial Robustness via Sparsity, 2020",
    year=2020,
    entry="Wang20",
    summary="relates sparsity to robustness, and gives large networks the weights of small ones",
    equations=(
        "several methods of pruning are run with adversarial training and compared, with the "
        "weights inherited from the ticket and without; sparsity is found not to hurt",
        "the method proposed, inverse weights inheritance, trains a large network that inherits "
        "the weights of a small one: it removes nothing",
        "the benchmark lists iterative magnitude pruning of all layers together, with adversarial "
        "training before and after: sehwag19 with --allocation global is that",
    ),
    pipeline="before",
    shots="IT",
    criterion="LWM",
    missing=(
        "which of the pruning methods compared the benchmark's row means",
        "how many cuts there are, how much each takes, and how long is trained between them",
        "whether weights are rewound after a cut, to which step, or kept as they are",
        "how a large network inherits: which of its weights are those of the small one, what the "
        "others start at, and which of them learn",
        "found in public: the abstract and the benchmark's row; no code",
    ),
)
