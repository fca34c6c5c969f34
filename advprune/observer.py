"""What a stage of training tells whoever watches it, and what it is given back."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from advprune.method import Progress

Tensors = dict[str, Tensor]
Saved = tuple[int, Tensors, list[dict]]


class Observer(Protocol):
    """Whoever watches: told after every step, given at times what would be lost.

    `save` is called after so many steps of the whole run, and `restore` gives back what the last
    call was given, in another process perhaps. A history of fewer epochs than the steps make says
    that the last of them is still to be measured.
    """

    def stepping(self) -> AbstractContextManager[None]:
        """Around steps: inside, whoever wants the run to stop waits for the next `save`."""
        ...

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None: ...

    def due(self, step: int) -> bool:
        """Whether it wants a `save` after this step; it gets one after every epoch anyway."""
        ...

    def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None: ...

    def restore(self) -> Saved | None: ...

    def epoch(self, history: list[dict]) -> None:
        """When an epoch has been measured: the rows of all that were."""
        ...

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What was made under a name before, else what `make` makes, which is kept for later.

        For pieces of work that depend on nothing but what the stage is given.
        """
        ...
