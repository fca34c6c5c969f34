"""The Adversarial Pruning Benchmark: its protocol, its model keys, its taxonomy.

Its numbers are AutoAttack's at eps 0.031 on the first 10,000 test images, and those of HO-FMN at
8/255 on images 2048 to 2175 after tuning on the first 64. Both are attacked here by this project's
own attacks, whose departures from the released code are told in `attacks.tuning`.
"""

from functools import partial
from typing import Any

from advprune.attacks import fmn, tuning
from advprune.attacks.autoattack import autoattack
from advprune.card import Card
from advprune.data import Split
from advprune.evaluate import craft, is_correct, predict, search
from advprune.repro import derive
from advprune.types import Classifier, Threat
from deploy.statistics import share
from pipeline.apb.entries import key_of, link_of

EPS = 0.031
FMN_EPS = 8 / 255
IMAGES = 10_000
TUNED_ON, JUDGED_ON = slice(0, 64), slice(2048, 2176)
_STEPS = 200
_SHAPE = (3, 32, 32)
_ARCHITECTURES = {"resnet18": "R18", "vgg16_bn": "V16", "vgg16_bn_fc3": "V16"}
_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def model_key(
    arch: str | None,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    shrinks: bool,
    sparsity: float,
    method: str = "AP",
) -> str:
    """`METHOD_{R18,V16}_{CIFAR10,SVHN}_{US,S}_{rate}`, a question mark for what it has no word.

    Args:
        shape, classes: of the images, which tell the data set.
        sparsity: share that is gone, in [0, 1); the key holds whole percents.
        method: its key in the benchmark, where it is known.
    """
    network = _ARCHITECTURES.get(arch or "", "?")
    known = {tuple(_CIFAR10): "CIFAR10", tuple("0123456789"): "SVHN"}
    data = known.get(tuple(sorted(classes)), "?") if shape == _SHAPE else "?"
    return f"{method}_{network}_{data}_{'S' if shrinks else 'US'}_{round(100 * sparsity)}"


def taxonomy(card: Card) -> dict[str, str]:
    """A method's entry; the keys are spelled, and misspelled, as the benchmark spells them."""
    letter = {"after": "A", "before": "B", "during": "D"}[card.pipeline]
    shots = f"{letter}: OneShot (1S) vs Iterative (IT)"
    steps = {
        "A": {"A: Pretraining ": card.pretraining, "A: Finetuning": card.finetuning},
        "B": {"B: Pruning step ": card.pretraining, "B: Training step ": card.finetuning},
        "D": {"D: Training step ": card.training},
    }[letter]
    return {
        "ap_key": key_of(card),
        "link_to_paper": link_of(card),
        "Type of Pipeline:": letter,
        **steps,
        **({shots: card.shots} if letter != "D" else {}),
        "Pruning structure": card.structure,
        "Pruning locality": card.locality,
        "Pruning criterion": card.criterion,
    }


def evaluate(
    model: Classifier, scores: Classifier, test: Split, seed: int, trials: int
) -> dict[str, Any]:
    """The benchmark's two numbers for one model, with 95 % Clopper-Pearson intervals.

    Args:
        model: differentiable.
        scores: what is judged, and what Square asks; the same function.
        test: in any order; the protocol's images are chosen by their identities.

    Returns:
        "clean" and "autoattack" with the number of images, and "ho_fmn", None where the test set
        ends before its images begin.
    """
    ordered = test.subset(test.indices.argsort()).first(IMAGES)
    clean = is_correct(predict(scores, ordered.images), ordered.labels)
    attack = partial(autoattack, scores=scores)
    found = craft(model, ordered, Threat(EPS), derive(seed, "apb"), attack)
    robust = clean & is_correct(predict(scores, found), ordered.labels)
    return {
        "eps": EPS,
        "images": len(ordered),
        "clean": share(clean.tolist()),
        "autoattack": share(robust.tolist()),
        "ho_fmn": _ho_fmn(model, ordered, seed, trials),
    }


def _ho_fmn(model: Classifier, test: Split, seed: int, trials: int) -> dict[str, Any] | None:
    if len(test) < JUDGED_ON.stop:
        return None
    threat = Threat(FMN_EPS)
    tuned = tuning.tune(model, test.subset(TUNED_ON), threat, seed, trials=trials)
    judged = test.subset(JUDGED_ON)
    settings = {**vars(tuned.best.tuning), "steps": _STEPS}
    attack = partial(fmn.nearest, tuning=fmn.Tuning(**settings))
    end = search(model, judged, threat, derive(seed, "apb", "fmn"), attack)
    return {
        "eps": FMN_EPS,
        "images": len(judged),
        "trials": trials,
        "tuning": settings,
        "robust": share((end.distance > FMN_EPS).tolist()),
        "median_distance": end.distance.median().item(),
    }
