"""What a pruning method is: a frozen set of options with a few verbs, in a file of its own.

The file name is the method's name. Registering needs nothing else: options become command-line
flags, the card becomes a row of `advprune methods`, and the contract tests pick the method up.

Methods that search (`train.fit`):
    start     attach parametrisations, freeze what stays, initialise
    groups    what the optimiser moves, with its own rates and decay where the paper says so
    optimiser SGD, unless the paper has another
    loss      the objective, plus the method's own terms
    update    after each optimiser step: refresh masks, move schedules; gives what happened
    measured  after each epoch: what it came to
    pace      where in the learning rate's schedule the search stands

Methods that survey the training images once, without training (`survey.survey`):
    assess    what a batch says of each weight

All of them:
    finish    the masks; the weights are whatever the network then holds
"""

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

import advprune.methods
from advprune import undetermined
from advprune.batches import Batch
from advprune.card import Card
from advprune.errors import Refused
from advprune.events import Event
from advprune.objectives import Loss, Objective
from advprune.optimisation import Optimisation, ParameterGroups, sgd, trainable
from advprune.repro import derive
from advprune.types import Masks
from advprune.units import SingleWeights, Units

State = dict[str, Tensor]


def check_sparsity(value: float) -> float:
    """0 <= sparsity < 1, the share of weights removed.

    Raises:
        ValueError: with the value that was probably meant.
    """
    if 0.0 <= value < 1.0:
        return abs(value)  # minus zero has a name of its own
    # Shifting the decimal point keeps every digit: 90 is 0.90, and 99.9 is 0.999, not 1.00.
    meant = Decimal(f"{value:.10g}").scaleb(-2)
    hint = f"; did you mean {meant}?" if 1.0 < value < 100.0 else ""
    raise ValueError(f"sparsity is the share of weights removed, 0 <= sparsity < 1{hint}")


# NaN and infinity are let through to the check, whose refusal says what a sparsity is.
Sparsity = Annotated[float, Field(allow_inf_nan=True), AfterValidator(check_sparsity)]


@dataclass(frozen=True)
class Task:
    """What the network is trained for, on which images, and the seed of every random choice.

    Attributes:
        shape: (C, H, W) of one image.
    """

    objective: Objective
    seed: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` optimiser steps done of `steps`, `epoch_steps` in an epoch."""

    step: int
    steps: int
    epoch_steps: int

    @property
    def fraction(self) -> float:
        return self.step / self.steps

    @property
    def ends_epoch(self) -> bool:
        return self.step % self.epoch_steps == 0


class PruningMethod(BaseModel, ABC):
    """Base of all methods; see the module's docstring for the verbs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    card: ClassVar[Card]
    # True where the search itself moves the weights of prunable layers, not only their masks.
    moves_weights: ClassVar[bool] = False

    sparsity: Sparsity = Field(default=0.9, description="share of prunable weights to remove")

    @property
    def searches(self) -> bool:
        """Whether the method trains something before its masks are known."""
        return type(self).start is not PruningMethod.start

    @property
    def surveys(self) -> bool:
        """Whether the method scores weights in a pass over the training images."""
        return type(self).assess is not PruningMethod.assess

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        return {}

    def groups(self, net: nn.Module, optimisation: Optimisation) -> ParameterGroups:
        """What the optimiser moves; by default all that learns, with the shared settings."""
        return trainable(net)

    def optimiser(
        self, groups: ParameterGroups, optimisation: Optimisation
    ) -> torch.optim.Optimizer:
        """What moves them; the loop scales their learning rates by its schedule."""
        return sgd(groups, optimisation)

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        return task.objective(net, batch)

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        return None

    def measured(self, state: State, row: Mapping[str, float]) -> None:
        """Told the row of an epoch when it has been measured; what it makes of it goes to `state`.

        An epoch that was saved before it was measured is measured again, and told again.
        """

    def pace(self, fraction: float) -> float:
        """The share of the learning rate's schedule that is over, of the share of the steps."""
        return fraction

    @property
    def augmented(self) -> bool:
        """Whether a survey sees the training images augmented, or as they are."""
        return True

    def batches_needed(self, count: int) -> int:
        """How many of the `count` training batches a survey reads."""
        return count

    def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        """What this batch says of each weight, by the name of the weight; summed by the survey.

        Called in eval mode; must leave weights, gradients and statistics as they are.
        """
        raise NotImplementedError(f"{name_of(type(self))} does not survey")

    def units(self, net: nn.Module, task: Task) -> Units:
        """What the method keeps or removes as one; `net` without parametrisations."""
        return SingleWeights(net)

    @property
    def shrinks(self) -> bool:
        """Whether whole channels go, so that the network can be made smaller."""
        return False

    @property
    def lands(self) -> bool:
        """Whether the masks are at the asked sparsity, or where the method took them."""
        return True

    @abstractmethod
    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        """The masks, one entry for each weight, at the asked sparsity over all `units` together.

        The network must be plain afterwards where `units` are channels: they are traced again.
        """

    def random_seed(self, task: Task, *purpose: str) -> int:
        return derive(task.seed, "method", name_of(type(self)), *purpose)


_REGISTRY: dict[str, type[PruningMethod]] = {}
M = TypeVar("M", bound=type[PruningMethod])


def register(cls: M) -> M:
    """Make the class known by the name of its file. Raises ValueError when the name is taken."""
    name = name_of(cls)
    if name in _REGISTRY:
        raise ValueError(f"method {name!r} is registered twice")
    _REGISTRY[name] = cls
    return cls


def name_of(cls: type[PruningMethod]) -> str:
    return cls.__module__.rsplit(".", 1)[-1]


def names() -> list[str]:
    """The methods there are, read off the folder without importing any of them."""
    return sorted(module.name for module in pkgutil.iter_modules(advprune.methods.__path__))


def get(name: str) -> type[PruningMethod]:
    """The class of one method.

    Raises:
        Refused: there is none, with the nearest names; or it is described and not built.
    """
    if name in undetermined.names():
        raise Refused(
            f"--method {name!r} is described, but not built: what is public of it leaves parts "
            f"open, named by `advprune methods {name}`"
        )
    if name not in names():
        near = difflib.get_close_matches(name, [*names(), *undetermined.names()], n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names())}"
        raise Refused(f"--method {name!r} is not known; {hint} (see `advprune methods`)")
    importlib.import_module(f"advprune.methods.{name}")
    return _REGISTRY[name]
