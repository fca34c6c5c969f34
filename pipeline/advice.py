"""Which settings suit a set of images, each with its reason: where a newcomer begins."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from advprune.data import Reading
from advprune.data.decode import fits
from advprune.data.inspection import Inspection
from advprune.data.sparing import spared
from advprune.data.splits import split
from advprune.errors import Refused
from pipeline.resolve import resolve

# What papers attack with, in the maximum norm.
_COLOUR, _PHOTOGRAPHS, _GREY = Fraction(8, 255), Fraction(4, 255), Fraction(1, 10)
_SIDES = (32, 64, 96, 128, 160, 224)
_LARGEST_ON_CPU = 64  # twice the side takes four times the time
_SMALL = 16  # pixels of a side, like the digits'
_STEPS = 10  # of an epoch, below which a schedule by epochs has too few to learn in
_FEWEST_IN_BATCH = 8  # or batch statistics are noise
TRAINING = ("standard", "adversarial", "prune", "finetune", "quantize")


@dataclass(frozen=True)
class Advice:
    """Settings by their names in a recipe, and why.

    Attributes:
        settings: dotted key -> value; those that go without saying are left out.
        reasons: key -> a few words.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, reason: str) -> None:
        self.settings[key], self.reasons[key] = value, reason


def command(words: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The words of a command that is given these settings, to be typed as they are."""
    typed = ["advprune", *words]
    for key, value in settings.items():
        option = "--" + key.replace("_", "-")
        if "." in key:
            typed += ["--set", f"{key}={value}"]
        else:
            typed += [option] if value is True else [option, str(value)]
    return shlex.join(typed)


def advise(found: Inspection, given: Mapping[str, Any]) -> Advice:
    """Settings for these images on this machine, beside those that are given.

    Args:
        given: what the user has chosen of how files are read, by its name in a recipe.
    """
    advice = Advice(dict(given))
    form = found.form
    if form is None:
        return advice
    gpu = torch.cuda.is_available()
    small = max(form.size) <= _SMALL
    if small:
        advice.put("preset", "digits", "a schedule for small images; minutes on two cores")
    elif gpu:
        advice.put("preset", "cifar10", "the papers' schedule, since there is a GPU")
    else:
        advice.put("preset", "subset", "a short schedule, since there is no GPU")
    if found.paths and given.get("image_size") is None:
        _image_size(found, advice, _SIDES[-1] if gpu else _LARGEST_ON_CPU)
    side = advice.settings.get("image_size", min(form.size))
    _eps(advice, form.mode, side, found.nearest)
    if found.paths and not fits(len(found.listed.labels), replace(form, size=(side, side))):
        advice.put("stream", True, "all of them would need more than half of the free memory")
    if found.parts:
        _limits(found, advice)
        _batch_size(found.parts["train"], advice)
    return advice


def repair(found: Inspection, given: Mapping[str, Any], advice: Advice) -> dict[str, Any]:
    """How files must be read for a run to start, as far as that is in the way of reading.

    Refusals name the option that is their way out; only --skip-bad is not always one.
    """
    said = " ".join(map(str, found.refusals))
    settings = dict(given)
    if "--convert rgb" in said:
        settings["convert"] = "rgb"
    several = len({form.size for form in found.tally.forms}) > 1
    if (several or "--image-size" in said) and "image_size" in advice.settings:
        settings["image_size"] = advice.settings["image_size"]
    damaged = found.tally.faults.get("damaged")
    if damaged and damaged.count <= spared(len(found.paths), Reading(skip_bad=True)):
        settings["skip_bad"] = True
    return settings


def _image_size(found: Inspection, advice: Advice, largest: int) -> None:
    """One size where there are several, and a smaller one where one would take too long."""
    sides = sorted(min(form.size) for form in found.tally.forms.elements())
    same = len({form.size for form in found.tally.forms}) == 1
    if same and sides[0] <= largest:
        return
    tenth = sides[len(sides) // 10]  # few images should have to be made larger than they are
    fitting = [side for side in _SIDES if side <= min(tenth, largest)]
    reason = "larger ones take long here" if same else "the sizes differ, and one must do for all"
    advice.put("image_size", fitting[-1] if fitting else tenth, reason)


def _eps(advice: Advice, mode: str, side: int, nearest: float | None) -> None:
    if mode != "RGB":
        usual, why = (Fraction(3, 20) if side <= _SMALL else _GREY), "usual for small grey images"
    elif side > max(_SIDES[1], 64):
        usual, why = _PHOTOGRAPHS, "usual for large colour images"
    else:
        usual, why = _COLOUR, "usual for small colour images"
    eps = usual
    # From half of the distance on no classifier is right; a third leaves room to learn.
    if nearest is not None and 0 < nearest < 3 * usual:
        eps = Fraction(max(1, math.floor(nearest * 255 / 3)), 255)
        why = f"{why}, {_text(usual)}, is too near to half of the distance between classes"
    advice.put("eps", _text(eps), why)


def _text(eps: Fraction) -> str:
    return f"{float(eps):g}" if 255 % eps.denominator else f"{eps * 255}/255"


def _limits(found: Inspection, advice: Advice) -> None:
    """A preset's limits are lifted where they would leave out a class."""
    recipe, _ = resolve({"preset": advice.settings["preset"]}, environment={})
    limits = recipe.limit_train, recipe.limit_test
    try:
        split(found.listed, recipe.split_seed, *limits)
    except Refused:
        test = len(found.parts["test"])
        why = f"so many classes need more images than the preset's {limits[0]:,} and {limits[1]:,}"
        advice.put("limit_train", len(found.listed.labels) - test, why)
        advice.put("limit_test", test, why)


def _batch_size(train: Tensor, advice: Advice) -> None:
    recipe, _ = resolve({"preset": advice.settings["preset"]}, environment={})
    size = recipe.standard.batch_size
    while len(train) < _STEPS * size and size > _FEWEST_IN_BATCH:
        size //= 2
    if size != recipe.standard.batch_size:
        for stage in TRAINING:
            why = f"{len(train):,} training images make few steps of the preset's size"
            advice.put(f"{stage}.batch_size", size, why)
