"""Images to look at: where 8 bits changed an answer, and what breaks the engine that ships.

Nothing is made here. Every image was shown to both engines by the verification, and every class is
what they answered to it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advprune.types import Images, Logits
from deploy.recording import npz
from deploy.replay import Targets, is_quantised

SHOWN = 12  # images of "flipped" and of "broken", at most
# Why an image is shown as flipped, what tells most first.
FLIPS = ("clean", "int8", "float", "class")


@dataclass(frozen=True)
class Gallery:
    """What is shown of two engines, the float one and the first in 8 bits.

    Attributes:
        said: "engines", the two names; "counts", over all images, of each reason; and "items", one
            for each row of the arrays: its reason "why", "index", "label", "attack" (None where the
            image itself is meant), "distance", and the classes that the two engines gave to the
            image ("clean") and to what the attack made of it ("attacked").
        clean: uint8 (M, C, H, W).
        adversarial: float32 (M, C, H, W), as the engine in 8 bits received it.
    """

    said: dict[str, Any]
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.float32]

    def file(self) -> bytes:
        """The images, as an npz file."""
        return npz({"clean": self.clean, "adversarial": self.adversarial})


@dataclass(frozen=True)
class _Reason:
    """One reason to show an image: whether it holds, bool (N,), and which attacks show it, (A, N).

    `shown_by` is None where the image itself shows it.
    """

    holds: Tensor
    shown_by: Tensor | None


def choose(
    targets: Targets,
    candidates: Mapping[str, Images],
    logits: Mapping[str, Mapping[str, Logits]],
    worst: Mapping[str, Tensor],
) -> Gallery | None:
    """The first images for each reason, each with the nearest of the candidates that show it.

    Args:
        candidates: images within the threat, by attack.
        logits: by attack and model, the answers to them.
        worst: by engine, bool (N,): right on the image and under everything.

    Returns:
        None where there are not both a float engine and one in 8 bits.
    """
    pair = _pair(targets)
    if pair is None:
        return None
    clean = [targets.clean[name].argmax(dim=1) for name in pair]
    attacked = [
        torch.stack([answers[name].argmax(dim=1) for answers in logits.values()]) for name in pair
    ]
    reasons = _reasons(targets.split.labels, clean, attacked, [worst[name] for name in pair])
    lengths = torch.stack(
        [targets.threat.length((candidates[name] - targets.x).double()) for name in logits]
    )
    flipped, names = list(_flipped(reasons, lengths)), list(logits)
    rows = [*flipped[:SHOWN], *list(_shown("broken", reasons["broken"], lengths))[:SHOWN]]
    split, images = targets.split, []
    for _, image, attack in rows:
        made = targets.x if attack is None else candidates[names[attack]]
        images.append(targets.deliver(pair[1], made, targets.threat)[image])
    items = [
        {
            "why": why,
            "index": int(split.indices[image]),
            "label": int(split.labels[image]),
            "attack": None if attack is None else names[attack],
            "distance": 0.0 if attack is None else float(lengths[attack, image]),
            "clean": [int(classes[image]) for classes in clean],
            "attacked": [
                int(before[image] if attack is None else found[attack, image])
                for before, found in zip(clean, attacked, strict=True)
            ],
        }
        for why, image, attack in rows
    ]
    counts = {why: int(reason.holds.sum()) for why, reason in reasons.items()}
    flips = torch.stack([reasons[why].holds for why in FLIPS]).any(dim=0)
    said = {"engines": [*pair], "items": items, "counts": {**counts, "flipped": int(flips.sum())}}
    chosen = [image for _, image, _ in rows]
    pixels = torch.stack(images) if images else targets.x[:0]
    return Gallery(said, split.images[chosen].cpu().numpy(), pixels.cpu().numpy())


def _pair(targets: Targets) -> tuple[str, str] | None:
    """The first float engine and the first in 8 bits."""
    names = {
        codes: [name for name, engine in targets.engines.items() if is_quantised(engine) is codes]
        for codes in (False, True)
    }
    return (names[False][0], names[True][0]) if names[False] and names[True] else None


def _reasons(
    labels: Tensor, clean: list[Tensor], attacked: list[Tensor], worst: list[Tensor]
) -> dict[str, _Reason]:
    """Every reason, for classes by engine: float first, then 8 bits.

    Args:
        clean, attacked: int64 (N,) and (A, N), the classes that were answered.
        worst: bool (N,), right on the image and under everything.
    """
    broken = [
        (found != labels) & (before == labels)
        for before, found in zip(clean, attacked, strict=True)
    ]
    apart = attacked[0] != attacked[1]
    return {
        "clean": _Reason(clean[0] != clean[1], None),
        "int8": _Reason(worst[0] & ~worst[1], broken[1]),
        "float": _Reason(worst[1] & ~worst[0], broken[0]),
        "class": _Reason(apart.any(dim=0), apart),
        "broken": _Reason((clean[1] == labels) & ~worst[1], broken[1]),
    }


def _flipped(
    reasons: Mapping[str, _Reason], lengths: Tensor
) -> Iterator[tuple[str, int, int | None]]:
    """Each image whose answer 8 bits changed, once, for the first reason that an image shows."""
    taken: set[int] = set()
    for why in FLIPS:
        for row in _shown(why, reasons[why], lengths):
            if row[1] not in taken:
                taken.add(row[1])
                yield row


def _shown(why: str, reason: _Reason, lengths: Tensor) -> Iterator[tuple[str, int, int | None]]:
    """(reason, image, attack) in the order of the images.

    An engine may err only on the way to a candidate, as curves find it: then there is no image.
    """
    if reason.shown_by is None:
        yield from ((why, image, None) for image in _positions(reason.holds))
        return
    nearest = lengths.masked_fill(~reason.shown_by, torch.inf).argmin(dim=0).tolist()
    seen = reason.holds & reason.shown_by.any(dim=0)
    yield from ((why, image, nearest[image]) for image in _positions(seen))


def _positions(flags: Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()
