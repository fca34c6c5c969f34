"""How fast one step of training is beside the published loops: HARP's search, PGD-AT, TRADES.

    .venv/bin/python benchmarks/training.py [--quick] [--device cuda]

Ours is `fit()`, timed between the calls of its observer, so that a step is all that a step costs:
batch, augmentation, attack, loss, descent and new masks. The first step of every call of `fit()` is
not counted. The reference is given a batch that is ready. ResNet-18, 32 images of 3x32x32, 10 steps
of the attack, float32 reference; random images and weights, since speed depends on neither.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from reference.harp import harp_step, mask_layers
from reference.training import Attack, pgd_step, trades_step
from side_by_side import Contestant, Times, clock, conditions, race, spread, stopwatch, table

from advprune.data import ImageSet, Split
from advprune.flops import Flops
from advprune.method import Progress, Task
from advprune.methods.harp import Harp
from advprune.models import Architecture, build, prunable
from advprune.objectives import Objective
from advprune.peak import Peak, measure
from advprune.precision import Precision
from advprune.train import Schedule, fit
from advprune.types import Threat
from pipeline.watch import Silent

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")  # of ours

RESNET18 = Architecture("resnet18", 10, (3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
TINY = Architecture("digits_resnet", 10, (1, 8, 8), (0.5,), (0.3,))
THREAT = Threat(8 / 255)
TARGET, FLOOR, GAMMA, DENSITY = 0.01, 0.001, 0.01, 0.1  # HARP's, at 99 %
LR = 0.01


@dataclass(frozen=True)
class Setting:
    """One training step to time.

    Attributes:
        masks: HARP's search, or else dense adversarial training.
        precision: of ours; the reference always computes in float32.
        steps: of the attack.
        counted: steps of ours whose mean is one measurement.
    """

    masks: bool = True
    objective: Literal["pgd", "trades"] = "pgd"
    precision: Precision = "fp32"
    architecture: Architecture = RESNET18
    batch: int = 32
    steps: int = 10
    device: str = "cpu"
    counted: int = 2


def tiny(setting: Setting) -> Setting:
    """Hardly any work, to try a benchmark out."""
    return replace(setting, architecture=TINY, batch=4, steps=2, counted=1)


class Watch(Silent):
    """An observer of `fit()` that reads something after every step."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.readings: list[float] = []

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self.readings.append(self.read())

    def per_step(self) -> float:
        """By how much the reading grew in each step after the first."""
        return (self.readings[-1] - self.readings[0]) / (len(self.readings) - 1)


def ours(setting: Setting, read: Callable[[], float] | None = None) -> Contestant:
    """What `read`, by default a clock, says of one step."""
    read = read or clock(setting.device)
    images = random_images(setting)
    objective = Objective(setting.objective, THREAT, setting.steps, precision=setting.precision)
    task = Task(objective, 0, setting.architecture.shape)
    schedule = Schedule(epochs=1, batch_size=setting.batch, lr=LR, validate_every=0)
    method = Harp(sparsity=1.0 - TARGET, annealing="gamma") if setting.masks else None

    def run() -> float:
        watch = Watch(read)
        net = build(setting.architecture).to(setting.device)
        fit(net, images, task, schedule, watch, method)
        return watch.per_step()

    return run


def reference(setting: Setting) -> Contestant:
    """One published step after the other on the same batch."""
    split = random_images(setting).train.first(setting.batch)
    x, y = split.images / 255, split.labels
    net = build(setting.architecture).to(setting.device)
    attack = Attack(THREAT.eps, 2.5 * THREAT.eps / setting.steps, setting.steps)
    step: Callable[..., None]
    if setting.masks:
        densities = dict.fromkeys((n.removesuffix(".weight") for n in prunable(net)), DENSITY)
        mask_layers(net, densities, FLOOR)
        trades = setting.objective == "trades"
        step = partial(harp_step, target=TARGET, gamma=GAMMA, trades=trades)
    else:
        step = trades_step if setting.objective == "trades" else pgd_step
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learned, LR, momentum=0.9, weight_decay=5e-4)
    return stopwatch(lambda: step(net, optimiser, x, y, attack), setting.device)


def random_images(setting: Setting) -> ImageSet:
    """As many images as the steps take, on the device; one in every other split."""
    shape = setting.architecture.shape
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)
        labels = torch.randint(0, setting.architecture.classes, (count,), generator=draw)
        return Split(images, labels, torch.arange(count))

    train, one = split((1 + setting.counted) * setting.batch), split(1)
    classes = tuple(map(str, range(setting.architecture.classes)))
    images = ImageSet("random", classes, train, one, one, one, augment="crop-flip", digest="")
    return images.to(setting.device)


def compare(setting: Setting, rounds: int) -> Times:
    """The reference, then ours in every precision."""
    contestants = {"reference, fp32": reference(setting)}
    for precision in PRECISIONS:
        contestants[f"ours, {precision}"] = ours(replace(setting, precision=precision))
    return race(contestants, rounds)


def flops(setting: Setting) -> float:
    """Of one step of ours."""
    with Flops() as counter:
        return ours(setting, lambda: sum(counter.by_type.values()))()


def shares(setting: Setting, times: Times, peak: Peak) -> dict[str, list[float]]:
    """Of ours: achieved FLOP/s over the rate of a bf16 matrix product on the device, by round."""
    work = {f"ours, {p}": flops(replace(setting, precision=p)) for p in PRECISIONS}
    return {name: [one / s / peak.bf16 for s in times[name]] for name, one in work.items()}


LOOPS: dict[str, dict[str, Any]] = {
    "HARP": {"masks": True, "objective": "pgd"},
    "HARP by TRADES": {"masks": True, "objective": "trades"},
    "adversarial training": {"masks": False, "objective": "pgd"},
}


def on(device: str, loop: str) -> Setting:
    """The setting of one of the loops: 32 images on a CPU, 256 on a card, which 32 leave idle."""
    batch = 256 if device.startswith("cuda") else 32
    return Setting(device=device, batch=batch, **LOOPS[loop])


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny network: only to try it out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    peak = measure(options.device)
    for name in LOOPS:
        setting = on(options.device, name)
        if options.quick:
            setting = tiny(setting)
        times = compare(setting, options.rounds)
        text = f"{name} step, batch {setting.batch}\n\n{table(times, setting.batch)}\n"
        for contestant, share in shares(setting, times, peak).items():
            part = 100 * spread(share).median
            text += f"\n{contestant}: {part:.1f} % of the FLOP/s of a bf16 matrix product"
        sys.stdout.write(f"{text}\n\n")
    sys.stdout.write(f"{conditions(options.rounds)}, {options.device}\n")


if __name__ == "__main__":
    main()
