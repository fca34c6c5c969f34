"""What a resumed training may forget: each forgets one thing, and must be found out."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from advprune import batches, train
from advprune.epochs import pack, unpack
from advprune.observer import Saved
from advprune.repro import derive, generator
from advprune.train import Schedule
from pipeline import checkpoints
from pipeline.checkpoints import Checkpoints


def _omit(forgotten: Callable[[str], bool]) -> None:
    """Begin with what a fresh start has of it."""

    def omitting(tensors: dict, net: Any, optimiser: Any, state: Any, kept: Any) -> None:
        fresh = pack(net, optimiser, state, kept)
        known = {key: value for key, value in tensors.items() if not forgotten(key)}
        again = {key: value for key, value in fresh.items() if forgotten(key)}
        assert known.keys() != tensors.keys(), "there was nothing to forget"
        unpack(known | again, net, optimiser, state, kept)

    train.unpack = omitting  # pyright: ignore[reportPrivateImportUsage]


def _global_generator() -> None:
    torch.manual_seed(0)
    train.seeded = lambda *purpose: nullcontext()  # pyright: ignore


def _order_generator() -> None:
    stateful = torch.Generator().manual_seed(0)
    batches.generator = lambda seed, *purpose: (  # pyright: ignore
        stateful if purpose[0] == "order" else generator(seed, *purpose)
    )


def _attack_generator() -> None:
    count = itertools.count()
    batches.derive = lambda seed, *purpose: derive(seed, *purpose, next(count))  # pyright: ignore


def _permutation() -> None:
    whole = batches.batches
    train.batches = lambda images, seed, epoch, count, *, first, **others: whole(  # pyright: ignore
        images, seed + first, epoch, count, first=first, **others
    )


def _position() -> None:
    latest = Checkpoints.latest

    def at_the_start_of_the_epoch(self: Checkpoints) -> Saved | None:
        saved = latest(self)
        return saved and (saved[0] // 8 * 8, *saved[1:])

    Checkpoints.latest = at_the_start_of_the_epoch


def _schedule() -> None:
    rate, count = Schedule.rate, itertools.count()
    Schedule.rate = lambda self, fraction: rate(self, min(next(count) / 40, 1.0))


def _in_place() -> None:
    """One file, written over: what many programs do."""

    def write(path: Path, data: bytes) -> None:
        with path.with_name(path.name[:-9] + 9 * "0").open("wb") as file:
            file.write(data)

    checkpoints.write = write  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Mutant:
    """How to forget, and the stage in which that matters."""

    apply: Callable[[], None]
    stage: str = "adversarial"
    settings: dict[str, Any] = field(default_factory=dict)


def _without(*parts: str, **more: Any) -> Mutant:
    return Mutant(lambda: _omit(lambda key: any(part in key for part in parts)), **more)


MUTANTS = {
    "weights": _without("net/network.0.weight"),
    "running statistics": _without("running_"),
    "optimiser": _without("optimiser/"),
    "best weights": _without("best/", settings={"adversarial.lr": 2.0, "adversarial.epochs": 4}),
    "losses so far": _without("meter/"),
    "scores": _without(".scores", stage="prune", settings={"prune.lr": 5.0}),
    "masks": _without(".mask", stage="prune"),
    "state of the method": _without("method/", stage="prune", settings={"method": "radmm"}),
    "global generator": Mutant(_global_generator),
    "generator of the order": Mutant(_order_generator),
    "generator of the attack": Mutant(_attack_generator),
    "permutation": Mutant(_permutation),
    "position": Mutant(_position),
    "schedule": Mutant(_schedule),
    "in place": Mutant(_in_place),
}
