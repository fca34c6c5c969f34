"""What each setting means whose option has no help that says it; `*` is any training stage."""

MEANINGS = {
    "split_seed": "of the split into training, validation and calibration images",
    "attack_steps": "steps of the attack inside of training",
    "beta": "weight of the robust term of trades, mart and mad; theirs if not given (6, 5, 0.5)",
    "data_workers": (
        "processes that decode streamed images, one for each core if not given; they change no bit"
    ),
    "replays": "how often the objective `free` takes a batch, each time with a step",
    "threads": "of torch on the CPU; all cores if not given. Another number gives other bits",
    "*.epochs": "over the training images; 0 leaves the stage's work out",
    "*.batch_size": "images of one step",
    "*.lr": "peak learning rate; the schedule is a cosine down to zero",
    "*.momentum": "of SGD",
    "*.weight_decay": "of SGD",
    "*.warmup": "share of the steps over which the rate rises to its peak",
    "*.rise": "share of the epochs over which the attack's steps rise from one to all of them",
    "*.validate_every": (
        "epochs between measurements on validation images, of which the best weights are kept; "
        "0 measures at the end alone and keeps the last"
    ),
    "*.accumulate": (
        "pieces in which a step takes its images, one after the other, to need less memory; the "
        "gradient is that of all of them, batch norm sees a piece at a time"
    ),
    "*.sync_bn": "batch norm looks at the images of all ranks of `--nproc`, not at its own",
    "*.objective": "of this stage; the recipe's if not given",
    "finetune.objective": (
        "of this stage; the recipe's if not given. `kd` learns from the answers of the network of "
        "the stage adversarial, and attacks nothing"
    ),
    "quantize.calibration": "how ranges of activations are found",
    "quantize.scales": "of activations, while training through 8 bits",
    "quantize.distill": "share of the float network's answers in the loss of that training",
    "verify.split": "whose images are attacked; `train` is for trying things",
    "verify.suite": "how hard the engines are attacked",
    "verify.images": "attacked, from the beginning of the split",
    "verify.steps": "of PGD",
    "verify.restarts": "of PGD",
    "verify.queries": "of Square, for each engine and image",
    "verify.fmn": "steps of the search for the nearest adversarial image",
    "verify.apgd": "steps of each target of APGD and FAB, in the suite `release`",
    "verify.health": "images of the attacks that only check others",
    "verify.attacks": "more attacks, as `advprune attacks` lists them",
    "gate.release": "verdicts of the last release, to be held against as well",
    "gate.policy": "`regress` if none is given, `ship`, `floor`, `ratio`; several must all pass",
    "gate.margin": "drop that nobody minds; if not given, 0.01 for regress and 0.02 for ship",
    "gate.floor": "worst-case accuracy that must be held; adds the policy",
    "gate.ratio": "share of the float engine's accuracy that must be held; adds the policy",
    "gate.all_metrics": "clean accuracy and every attack decide as well",
    "gate.hard": "`size`, `latency`: fail where it would only warn",
}


def meaning(key: str) -> str | None:
    """What a dotted key of the recipe means; None where nobody said."""
    section, _, leaf = key.rpartition(".")
    return MEANINGS.get(key) or (MEANINGS.get(f"*.{leaf}") if section else None)
