"""What was seen of many images, a few bytes for each."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advprune.data.decode import Form, mismatch
from advprune.data.looking import KEY_BYTES, Look
from advprune.data.sparing import Undecodable
from advprune.errors import BadData

_NAMED = 5  # bad files of a kind that are told by name


@dataclass
class Fault:
    """Files that a run refuses for one reason: how many, and what it says of the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, refusal: BadData | None) -> None:
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(str(refusal))


class Tally:
    """All looks at a set of images, by position.

    Attributes:
        stored: formats and modes as they are in the files, with their counts.
        forms: as the images would be read, with their counts.
        faults: "damaged" and "unfit" files, and after `check_forms` "odd" ones.
        keys, low, high: uint8 (N, bytes) and (N, channels), of those that were read.
    """

    def __init__(self, found: Iterable[Look | BadData], count: int) -> None:
        self.stored: Counter[str] = Counter()
        self.forms: Counter[Form] = Counter()
        self.faults: dict[str, Fault] = {}
        self.keys = np.zeros((count, KEY_BYTES), np.uint8)
        self.low, self.high = np.zeros((2, count, 3), np.uint8)
        self._form = np.full(count, -1)  # of each image, by its number; -1 where it has none
        numbers: dict[Form, int] = {}
        for position, look in enumerate(found):
            if isinstance(look, BadData):
                kind = "damaged" if isinstance(look, Undecodable) else "unfit"
                self.faults.setdefault(kind, Fault()).add(look)
                continue
            self.stored[look.stored] += 1
            self.forms[look.form] += 1
            self._form[position] = numbers.setdefault(look.form, len(numbers))
            self.keys[position] = np.frombuffer(look.key, np.uint8)
            for channel, (low, high) in enumerate(look.extremes):
                self.low[position, channel], self.high[position, channel] = low, high
        self._numbers = numbers

    @property
    def commonest(self) -> Form | None:
        return self.forms.most_common(1)[0][0] if self.forms else None

    def check_forms(self, form: Form | None, paths: Sequence[Path]) -> Tensor:
        """bool (N,), the images that can be read and share this form; the others are told."""
        number = -2 if form is None else self._numbers.get(form, -2)
        if form is not None:
            forms = list(self._numbers)
            for position in np.flatnonzero((self._form >= 0) & (self._form != number)).tolist():
                odd = self.faults.setdefault("odd", Fault())
                odd.add(mismatch(forms[self._form[position]], paths[position], form))
        return torch.from_numpy(self._form == number)
