"""One model under attacks of the user's choice, and nothing else."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from advprune.attacks import fmn, tuning
from advprune.attacks.spec import parse
from advprune.data import Split
from advprune.errors import Refused
from advprune.evaluate import craft, is_correct, predict, search
from advprune.repro import derive
from deploy.replay import Targets

HO_FMN = "ho_fmn"
_ASKS_SCORES = "square"
_ENOUGH = 1000  # images, for a curve whose interval is worth reading
BLACK_BOX = "attacked by its scores alone: the true robust accuracy may be far lower"


def listed(
    specs: Sequence[str], targets: Targets, validation: Split, seed: int, trials: int
) -> dict[str, Any]:
    """Verdicts under each attack and under all of them, image by image.

    Args:
        specs: as `attacks.spec` reads them, or `ho_fmn`, which first tunes itself.
        targets: one engine, with a twin unless only Square is asked for.
        validation: images to tune on, apart from those that are judged.
        trials: settings that `ho_fmn` tries.

    Raises:
        Refused: an attack is not known, or needs a gradient that there is not.
    """
    (engine,) = targets.engines
    split, threat = targets.split, targets.threat
    clean = is_correct(targets.clean[engine], split.labels)
    verdicts: dict[str, Tensor] = {"clean": clean}
    notes: list[str] = []
    for spec in specs:
        by_scores = spec.partition(":")[0] == _ASKS_SCORES
        if not by_scores and not targets.twins:
            raise Refused(f"--attack {spec}: {engine} has no gradient; use square")
        model = targets.models[engine if by_scores else targets.twin_of[engine]]
        purpose = derive(seed, "attack", spec)
        if spec == HO_FMN:
            tuned = tuning.tune(model, validation, threat, purpose, trials=trials)
            end = search(
                model, split, threat, purpose, partial(fmn.nearest, tuning=tuned.best.tuning)
            )
            verdicts[spec] = clean & (end.distance > threat.eps)
            notes.append(
                f"{spec}: median distance {end.distance.median():.4f} over {len(split)} images, "
                f"with the best of {trials} settings on {len(validation)} validation images "
                f"({tuned.best.tuning})"
            )
            if len(split) < _ENOUGH:
                notes.append(f"{spec}: give {_ENOUGH} images for an interval worth reading")
            continue
        found = craft(model, split, threat, purpose, parse(spec), targets.batch_size)
        delivered = targets.deliver(engine, found, threat)
        answers = predict(targets.models[engine], delivered, targets.batch_size)
        verdicts[spec] = clean & is_correct(answers, split.labels)
    worst = clean.clone()
    for flags in verdicts.values():
        worst &= flags
    if not targets.twins:
        notes.append(BLACK_BOX)
    return {
        "indices": split.indices.tolist(),
        "verdicts": {name: flags.tolist() for name, flags in (verdicts | {"worst": worst}).items()},
        "notes": notes,
    }
