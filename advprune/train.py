"""fit(): the only training loop.

Standard training is this loop without a method; adversarial training is the same with another
objective; pruning adds a method; fine-tuning runs on a network whose masks are held.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advprune.batches import batches
from advprune.data import ImageSet, Split
from advprune.evaluate import survival
from advprune.meter import Meter
from advprune.method import Progress, PruningMethod, State, Task
from advprune.optimisation import Optimisation, sgd, trainable
from advprune.repro import derive, seeded


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: SGD with momentum, linear warm-up, cosine decay to zero.

    Args:
        epochs, batch_size: at least 1.
        lr: peak learning rate.
        warmup: share of the steps over which the rate rises to its peak.
        validate_every: epochs between measurements on the validation split; 0 for the end alone.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.0
    validate_every: int = 1

    def rate(self, fraction: float) -> float:
        """Learning rate relative to the peak, at this fraction of the run."""
        if fraction < self.warmup:
            return fraction / self.warmup
        decayed = (fraction - self.warmup) / (1.0 - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * decayed))


class Observer(Protocol):
    """Whoever watches: told after every step, given after every epoch what would be lost."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None: ...

    def save(self, epoch: int, tensors: dict[str, Tensor], history: list[dict]) -> None: ...

    def restore(self) -> tuple[int, dict[str, Tensor], list[dict]] | None: ...


@dataclass(frozen=True)
class Trained:
    """State of the method at the end, and one row of metrics per epoch."""

    state: State
    history: list[dict]


def fit(
    net: nn.Module,
    images: ImageSet,
    task: Task,
    schedule: Schedule,
    observer: Observer,
    method: PruningMethod | None = None,
    *,
    select: bool = False,
) -> Trained:
    """Train `net` in place.

    Args:
        images: on the device of the network; trains on `train`, measures on `val`.
        method: a pruning method, with its own loss and schedules.
        select: end with the weights of the epoch that was best on the validation split.

    Raises:
        Refused: the loss became infinite or not a number.
    """
    epoch_steps = math.ceil(len(images.train) / schedule.batch_size)
    optimisation = Optimisation(
        schedule.lr,
        schedule.weight_decay,
        steps=schedule.epochs * epoch_steps,
        momentum=schedule.momentum,
        images=len(images.train),
    )
    task = replace(task, objective=task.objective.for_training(schedule.epochs * len(images.train)))
    state = method.start(net, task, optimisation) if method else {}
    if method:
        optimiser = method.optimiser(method.groups(net, optimisation), optimisation)
    else:
        optimiser = sgd(trainable(net), optimisation)
    peaks = [group["lr"] for group in optimiser.param_groups]
    best = _Best() if select else None
    first, history = 0, []
    if (saved := observer.restore()) is not None:
        first, tensors, history = saved
        _unpack(tensors, net, optimiser, state, best)

    for epoch in range(first, schedule.epochs):
        net.train()
        meter = Meter(epoch + 1, images.train.images.device)
        with seeded(task.seed, "layers", epoch):
            for index, batch in enumerate(batches(images, task.seed, epoch, epoch_steps)):
                step = epoch * epoch_steps + index
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = peak * schedule.rate((step + 0.5) / optimisation.steps)
                loss = (
                    method.loss(net, state, batch, task) if method else task.objective(net, batch)
                )
                meter.add(loss, len(batch.labels))
                optimiser.zero_grad(set_to_none=True)
                loss.value.backward()
                optimiser.step()
                progress = Progress(step + 1, optimisation.steps, epoch_steps)
                if method:
                    method.update(net, state, progress, task)
                observer.step(progress, {"loss": meter.latest})
        row: dict[str, float] = {"epoch": epoch + 1, **meter.totals()}
        last = epoch + 1 == schedule.epochs
        if last or (schedule.validate_every and (epoch + 1) % schedule.validate_every == 0):
            row |= validate(net, images.val, task)
            if best:
                best.offer(net, row)
        history.append(row)
        observer.save(epoch + 1, _pack(net, optimiser, state, best), history)
    if best and best.tensors:  # none after zero epochs
        best.load(net)
    return Trained(state, history)


def validate(net: nn.Module, val: Split, task: Task) -> dict[str, float]:
    """Clean and, under an adversarial objective, robust accuracy on the validation split."""
    clean = survival(net, val)
    row = {"val_clean": float(clean.double().mean())}
    if task.objective.name != "natural":
        robust = survival(
            net, val, task.objective.threat, derive(task.seed, "val"), steps=task.objective.steps
        )
        row["val_robust"] = float(robust.double().mean())
    return row


class _Best:
    """The weights of the best epoch so far: highest robust (else clean) validation accuracy."""

    def __init__(self) -> None:
        self.score = torch.tensor(-1.0, dtype=torch.float64)
        self.tensors: dict[str, Tensor] = {}

    def offer(self, net: nn.Module, row: Mapping[str, float]) -> None:
        score = row.get("val_robust", row["val_clean"])
        # Equal scores go to the later epoch: it has seen more of the schedule.
        if score >= float(self.score):
            self.score.fill_(score)
            self.tensors = {key: value.clone() for key, value in net.state_dict().items()}

    def load(self, net: nn.Module) -> None:
        net.load_state_dict(self.tensors, strict=True)


def _pack(
    net: nn.Module, optimiser: torch.optim.Optimizer, state: State, best: _Best | None
) -> dict[str, Tensor]:
    """All that the next epoch depends on, as one flat dict of tensors."""
    tensors = {f"net/{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"method/{key}": value for key, value in state.items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": value for key, value in slots.items()}
    if best:
        tensors |= {"best_score": best.score}
        tensors |= {f"best/{key}": value for key, value in best.tensors.items()}
    return {key: value.detach().cpu().clone() for key, value in tensors.items()}


def _unpack(
    tensors: dict[str, Tensor],
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: State,
    best: _Best | None,
) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    net.load_state_dict(part("net/"), strict=True)
    for key, value in part("method/").items():
        state[key].copy_(value)
    slots: dict[int, dict[str, Any]] = {}
    for key, value in part("optimiser/").items():
        index, name = key.split("/", 1)
        slots.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    if best:
        best.score.copy_(tensors["best_score"])
        device = next(net.parameters()).device
        best.tensors = {key: value.to(device) for key, value in part("best/").items()}
