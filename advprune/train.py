"""fit(): the only training loop.

Standard training is this loop without a method; adversarial training is the same with another
objective; pruning adds a method; fine-tuning runs on a network whose masks are held.
"""

import math
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from advprune import ranks
from advprune.batches import Batch, batches
from advprune.data import ImageSet, Split, as_float
from advprune.epochs import Best, Kept, digest, pack, unpack
from advprune.evaluate import survival
from advprune.events import Events
from advprune.masking import maskings
from advprune.meter import Meter
from advprune.method import Progress, PruningMethod, State, Task
from advprune.objectives import Loss
from advprune.observer import Observer
from advprune.optimisation import Optimisation, sgd, trainable
from advprune.rank_sums import total_gradients
from advprune.replays import replayed
from advprune.repro import derive, seeded
from advprune.spans import span
from advprune.stats import realised_sparsity
from advprune.watchdog import Watchdog
from advprune.whole_batch import as_whole, average_statistics


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: SGD with momentum, linear warm-up, cosine decay to zero.

    Args:
        epochs, batch_size: at least 1.
        lr: peak learning rate.
        warmup: share of the steps over which the rate rises to its peak.
        rise: share of the epochs over which the attack's steps rise from one to all of them.
        validate_every: epochs between measurements on the validation split; 0 for the end alone.
        accumulate: pieces in which a rank takes its rows of a batch, one after the other. The
            gradient is that of the whole batch; each piece has batch statistics of its own.
        sync_bn: whether batch norm looks at the rows of all ranks, or each at its own.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.0
    rise: float = 0.0
    validate_every: int = 1
    accumulate: int = 1
    sync_bn: bool = True

    def rate(self, fraction: float) -> float:
        """Learning rate relative to the peak, at this fraction of the run."""
        if fraction < self.warmup:
            return fraction / self.warmup
        decayed = (fraction - self.warmup) / (1.0 - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * decayed))

    def attack_steps(self, steps: int, epoch: int) -> int:
        """How many of the attack's steps this epoch takes, counted from zero."""
        rising = self.rise * self.epochs
        return steps if epoch >= rising else 1 + int((steps - 1) * epoch / rising)


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
        Refused: the loss, a weight or a running statistic became infinite or not a number. Nothing
            of that is saved.
    """
    times = task.objective.times
    epoch_batches = math.ceil(len(images.train) / schedule.batch_size)
    epoch_steps = epoch_batches * times
    optimisation = Optimisation(
        schedule.lr,
        schedule.weight_decay,
        steps=schedule.epochs * epoch_steps,
        momentum=schedule.momentum,
        images=len(images.train),
    )
    state = method.start(net, task, optimisation) if method else {}
    shown = schedule.epochs * len(images.train) * times
    objective = task.objective.for_training(net, as_float(images.train.first(8).images), shown)
    task = replace(task, objective=objective)
    if method:
        optimiser = method.optimiser(method.groups(net, optimisation), optimisation)
    else:
        optimiser = sgd(trainable(net), optimisation)
    peaks = [group["lr"] for group in optimiser.param_groups]
    best = Best() if select else None
    watchdog = Watchdog(images.val, task) if task.objective.single_step else None
    meter = Meter(net, images.val.images.device)
    masked = any(True for _ in maskings(net))
    events = Events()
    kept: dict[str, Kept] = {"meter": meter, "events": events}
    kept |= {key: it for key, it in (("best", best), ("watchdog", watchdog)) if it is not None}
    done, history, due = 0, [], False
    if (saved := observer.restore()) is not None:
        done, tensors, history = saved
        unpack(tensors, net, optimiser, state, kept)

    for epoch in range(len(history), schedule.epochs):
        first = max(done - epoch * epoch_steps, 0)
        if events.stopped and not first:
            break
        net.train()
        now = _eased(watchdog.task() if watchdog else task, schedule, epoch)
        if not first:
            meter.begin(epoch + 1)
            events.begin()
        order = batches(
            images,
            task.seed,
            epoch,
            epoch_batches,
            first=first // times,
            pieces=schedule.accumulate,
        )
        with observer.stepping(), closing(order):
            for step, batch in enumerate(replayed(order, times), epoch * epoch_steps + first):
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    fraction = (step + 0.5) / optimisation.steps
                    group["lr"] = peak * schedule.rate(
                        method.pace(fraction) if method else fraction
                    )
                optimiser.zero_grad(set_to_none=True)
                meter.add(descend(net, batch, now, schedule, step, method, state), batch.rows.of)
                with span("optimiser"):
                    optimiser.step()
                meter.stepped()
                progress = Progress(step + 1, optimisation.steps, epoch_steps)
                event = None
                if method:
                    with span("masks"):
                        event = method.update(net, state, progress, task)
                due |= events.happened(event, net, optimiser)
                observer.step(progress, {"loss": meter.latest, "images": batch.rows.of})
                due = observer.due(progress.step) or due or progress.ends_epoch
                # Before the epoch is measured: what measures it changes nothing, and takes long.
                # Not between replays: what they carry belongs to a batch, not to the training.
                if due and progress.step % times == 0:
                    due, packed = False, pack(net, optimiser, state, kept)
                    if ranks.count() > 1:
                        ranks.demand_same(f"what epoch {epoch + 1} has come to", digest(packed))
                    observer.save(progress.step, packed, history)
        row: dict[str, float] = {"epoch": epoch + 1, **meter.totals()}
        if watchdog and not watchdog.fallen:
            row["watched"] = watchdog.look(net)
            if watchdog.fallen:
                row["overfitted"] = True
                optimiser.state.clear()  # momentum of the way that led there
        row |= events.row()
        last = events.stopped or epoch + 1 == schedule.epochs
        if last or (schedule.validate_every and (epoch + 1) % schedule.validate_every == 0):
            row |= validate(net, images.val, task)
            if best:
                best.offer(net, row.get("val_robust", row["val_clean"]))
        if masked:
            row["sparsity"] = realised_sparsity(net)
        history.append(row)
        if method:
            method.measured(state, row)
        observer.epoch(history)
    if best and best.tensors:  # none after zero epochs
        best.load(net)
    return Trained(state, history)


def descend(
    net: nn.Module,
    batch: Batch,
    task: Task,
    schedule: Schedule,
    step: int,
    method: PruningMethod | None,
    state: State,
) -> Loss:
    """Leave on every parameter the gradient of the loss of a batch, of all ranks' rows of it.

    Args:
        batch: this rank's rows.

    Returns:
        The loss of the whole batch, without gradients.
    """
    device = batch.images.device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for piece in batch.pieces(schedule.accumulate):
        # Every piece draws what the whole batch would.
        seed = seeded(task.seed, "layers", step)
        with span("loss"), seed, as_whole(piece.rows, schedule.sync_bn):
            loss = method.loss(net, state, piece, task) if method else task.objective(net, piece)
        with span("backward"):
            (loss.value * piece.share).backward()
        sums += torch.stack([loss.value.detach().double() * piece.share, loss.correct.double()])
    if ranks.count() > 1:
        with span("ranks"):
            total_gradients(net.parameters())
            if not schedule.sync_bn:
                average_statistics(net)
            sums = ranks.total(sums)
    value, correct = sums
    return Loss(value, correct)


def _eased(task: Task, schedule: Schedule, epoch: int) -> Task:
    """The task with as many attack steps as the schedule has come to."""
    steps = schedule.attack_steps(task.objective.steps, epoch)
    return replace(task, objective=replace(task.objective, steps=steps))


@span("validation")
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
