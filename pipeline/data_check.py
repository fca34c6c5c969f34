"""What a run will find in a data set: the inspection, what is doubtful, and what to do next."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advprune.data import names
from advprune.data.decode import free_memory
from advprune.data.folder import PREFIX
from advprune.data.inspection import Inspection, inspect
from advprune.errors import Refused
from deploy.gate_outlook import Outlook, outlook
from pipeline.advice import Advice, advise, command, repair
from pipeline.recipe import Recipe
from pipeline.resolve import resolve
from pipeline.stages.data import demand_calibration

FEW_IN_CLASS = 100  # to train on: below, what is learned of a class is luck as much as not
UNEVEN = 10  # times the images of the smallest class


@dataclass(frozen=True)
class Check:
    """Everything that is said of a data set.

    Attributes:
        data: as a recipe names it.
        given: settings of the user's choice, by their names in a recipe.
        recipe: what would run if the advice were taken.
        refusals: what a run says of the data as it is, in its order; none where it starts.
    """

    data: str
    given: Mapping[str, Any]
    found: Inspection
    advice: Advice
    recipe: Recipe
    refusals: list[Refused]

    @property
    def exit_code(self) -> int:
        return self.refusals[0].exit_code if self.refusals else 0

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Class -> images to train on (with validation and calibration) and to test with.

        Where the folder cannot be split, all are to train on.
        """
        labels, classes = self.found.listed.labels, self.found.listed.classes
        tested = labels[self.found.parts["test"]] if self.found.parts else labels[:0]
        whole, test = (np.bincount(part, minlength=len(classes)) for part in (labels, tested))
        # Two classes may have one name, as in ImageNet.
        seen = Counter(classes)
        unique = [n if seen[n] == 1 else f"{n} ({i})" for i, n in enumerate(classes)]
        return {n: (int(w - t), int(t)) for n, w, t in zip(unique, whole, test, strict=True)}

    @property
    def outlook(self) -> Outlook | None:
        """What the gate can tell with so many test images."""
        if not self.found.parts:
            return None
        limit = self.recipe.limit_test or len(self.found.parts["test"])
        images = self.recipe.verify.settings(self.recipe.seed).images
        return outlook(min(len(self.found.parts["test"]), limit, images), self.recipe.gate.terms())

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that the images take where a run holds all of them, and bytes that are free."""
        shape = self.found.form.shape if self.found.form else (0,)
        return len(self.found.listed.labels) * int(np.prod(shape)), free_memory()

    @property
    def next(self) -> str:
        """The command to type now."""
        if not self.refusals:
            return command(["run", "--data", self.data], self.advice.settings)
        return command(
            ["data", "check", self.data.removeprefix(PREFIX)],
            repair(self.found, self.given, self.advice),
        )

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """(width, height) as images would be read -> how many."""
        sizes: Counter[tuple[int, int]] = Counter()
        for form, count in self.found.tally.forms.items():
            sizes[form.size] += count
        return sizes

    @property
    def leaks(self) -> list[tuple[str, str]]:
        """The first few test images that are trained on, and as what."""
        return [(self._name(a), self._name(b)) for a, b in self.found.twice.pairs]

    def skips(self, kind: str) -> bool:
        """Whether a run leaves out files with this fault instead of refusing them."""
        return kind == "damaged" and self.recipe.skip_bad and not self.refusals

    def _name(self, position: int) -> str:
        return str(self.found.paths[position]) if self.found.paths else f"image {position}"

    def warnings(self) -> Iterable[str]:
        """What a run would do without a word, and should not be done without a thought."""
        twice = self.found.twice
        if twice.leaked:
            tested, trained = self.leaks[0]
            yield (
                f"leakage: {twice.leaked:,} of the test images are trained on as well, e.g. "
                f"{tested} is {trained}; remove one of each, or what is measured is "
                "partly memory"
            )
        if twice.contradicting:
            one, other = map(self._name, twice.disputed)
            yield (
                f"{twice.contradicting:,} images have another label elsewhere, e.g. {one} is "
                f"{other}; remove the wrong ones"
            )
        for count, part in ((twice.in_train, "images to train on"), (twice.in_test, "test images")):
            if count:
                yield f"{count:,} {part} are copies of others, and count each time"
        yield from self._warnings_on_counts()
        if outlook := self.outlook:
            more = outlook.images < len(self.found.parts["test"])
            way = "see --set verify.images and --limit-test" if more else "add test images"
            yield from (f"{warning}; {way}" for warning in outlook.warnings)

    def _warnings_on_counts(self) -> Iterable[str]:
        trained = {name: train for name, (train, _) in self.counts.items()}
        least, most = min(trained, key=trained.__getitem__), max(trained, key=trained.__getitem__)
        if trained[most] > UNEVEN * trained[least]:
            yield (
                f"class {most!r} has {trained[most]:,} images to train on and {least!r} has "
                f"{trained[least]:,}; accuracies are over all images, so that large classes decide"
            )
        if trained[least] < FEW_IN_CLASS:
            few = sum(count < FEW_IN_CLASS for count in trained.values())
            yield (
                f"{few:,} of {len(trained):,} classes have fewer than {FEW_IN_CLASS} images to "
                f"train on, {least!r} has {trained[least]:,}; add images"
            )


def as_data(text: str) -> str:
    """What a recipe calls it: the name of a set as it is, a path as `folder:PATH`."""
    known = [name for name, _ in names()]
    return text if text in known or text.startswith(PREFIX) else PREFIX + text


def check(text: str, given: Mapping[str, Any], watched: Any = lambda found, _: found) -> Check:
    """Look at a data set as `run` would.

    Args:
        text: a folder, or a set by its name.
        given: how it is to be read: `image_size`, `convert`, `skip_bad` and `data_dir`.
        watched: as `inspect` takes it.

    Raises:
        Refused and its kinds: what a run says, where that leaves nothing to look at.
    """
    data = as_data(text)
    recipe, _ = resolve({**given, "data": data})
    found = inspect(data, recipe.data_dir, recipe.reading(), recipe.split_seed, watched)
    refusals = list(found.refusals)
    advice = advise(found, given)
    if found.parts:
        trained = len(found.listed.labels) - len(found.parts["test"])
        calib = found.parts["calib"]
        # What a refused file would have been used for is not the user's next question.
        calibrating = len(calib) if refusals else int(found.usable[calib].sum())
        try:
            demand_calibration(data, trained, calibrating)
        except Refused as error:
            refusals.append(error)
    advised, _ = resolve({**advice.settings, "data": data})
    return Check(data, given, found, advice, advised, refusals)
