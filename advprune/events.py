"""What a method does to a network beside learning, and what the training loop does about it.

    event     the method has                          the loop
    PRUNE     removed weights for good                forgets their momentum
    REWIRE    removed weights and grown as many       forgets the momentum of what is not there
    REWIND    put weights back to an earlier step     begins with a new optimiser
    RESET     changed what is learned                 begins with a new optimiser
    FREEZE    decided which weights are there         nothing: from here on they only learn
    STOP      found what it was looking for           ends after the epoch

A method says so by what its `update` returns. The loop writes a checkpoint after every event but
REWIRE, which may come with every step, and counts them in the row of the epoch. Whatever a method
needs to go on after an event is in its state, so that a search resumes in the same bits anywhere.
"""

from enum import Flag, auto

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.masking import maskings


class Event(Flag):
    PRUNE = auto()
    REWIRE = auto()
    REWIND = auto()
    RESET = auto()
    FREEZE = auto()
    STOP = auto()


_KINDS = tuple(Event)
_CHECKPOINTED = Event.PRUNE | Event.REWIND | Event.RESET | Event.FREEZE | Event.STOP
_NEW_OPTIMISER = Event.REWIND | Event.RESET
_REMOVED = Event.PRUNE | Event.REWIRE


class Events:
    """What happened so far in an epoch, and whether it is the last one."""

    def __init__(self) -> None:
        self._counts = torch.zeros(len(_KINDS), dtype=torch.int64)
        self._stopped = torch.tensor(False)

    @property
    def stopped(self) -> bool:
        """Whether the epoch in which the method said so is over, or will be the last."""
        return bool(self._stopped)

    def begin(self) -> None:
        """Start an epoch."""
        self._counts.zero_()

    def happened(
        self, event: Event | None, net: nn.Module, optimiser: torch.optim.Optimizer
    ) -> bool:
        """Do what the loop owes an event. True where the step is to be checkpointed."""
        if not event:
            return False
        for index, kind in enumerate(_KINDS):
            self._counts[index] += kind in event
        if event & _REMOVED:
            forget_removed(net, optimiser)
        if event & _NEW_OPTIMISER:
            optimiser.state.clear()
        if Event.STOP in event:
            self._stopped.fill_(True)
        return bool(event & _CHECKPOINTED)

    def row(self) -> dict[str, int]:
        """How often each kind happened in this epoch, by its name, those that did."""
        pairs = zip(_KINDS, self._counts.tolist(), strict=True)
        return {str(kind.name).lower(): count for kind, count in pairs if count}

    def pack(self) -> dict[str, Tensor]:
        return {"counts": self._counts, "stopped": self._stopped}

    def unpack(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._counts.copy_(tensors["counts"])
        self._stopped.copy_(tensors["stopped"])


@torch.no_grad()
def forget_removed(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Zero what the optimiser remembers of weights whose mask is off."""
    for _, layer, masking in maskings(net):
        stack: parametrize.ParametrizationList = layer.parametrizations.weight  # pyright: ignore
        mask = getattr(masking, "mask", None)
        if mask is None:
            continue
        for slot in optimiser.state.get(stack.original, {}).values():
            if isinstance(slot, Tensor) and slot.shape == mask.shape:
                slot.mul_(mask)
