"""How time and memory grow: with images, attack steps, arithmetic, scores; of search and dense.

    .venv/bin/python benchmarks/growth.py [--quick] [NAME...]

Each line says with which power of the size the time grows: the slope of the least-squares line
through log(seconds) against log(size), 1 where it grows in proportion and less where something
constant weighs in; and how much of the seconds' variance a straight line explains (R^2).
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import correlation, linear_regression, median

import torch
from preset import peak_memory
from side_by_side import Times, conditions, race, spread, stopwatch
from training import TINY, Setting, ours, tiny

from advprune.channels import remove
from advprune.coupling import couple
from advprune.data import Split
from advprune.evaluate import predict
from advprune.masks import keep_top
from advprune.models import Architecture, build
from advprune.stats import macs
from advprune.surgery import widths
from advprune.types import Threat
from deploy.runtime import load
from deploy.suites import Settings
from deploy.verify import verify
from export.to_onnx import to_onnx

BATCHES = (8, 16, 32, 64)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the channels of ResNet-18
STEPS = (1, 3, 10, 30)  # of the attack
SCORES = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
VERIFIED = (64, 128, 256)
KEPT = 0.1
NEAR = Threat(0.001)  # too near for any image to leave the batch

GROWING = {
    "images": "HARP step, images",
    "attack": "adversarial step, attack steps",
    "macs": "HARP step, MACs",
    "masks": "mask, scores",
    "verification": "verification, images",
}

# By size: the seconds of each round.
Sizes = dict[int, list[float]]


def images(batches: Sequence[int], base: Setting, rounds: int) -> Sizes:
    """HARP's step against the size of the batch."""
    return _race({batch: ours(replace(base, batch=batch)) for batch in batches}, rounds)


def attack_steps(counts: Sequence[int], base: Setting, rounds: int) -> Sizes:
    """A step of adversarial training against the steps of its attack."""
    dense = replace(base, masks=False)
    return _race({count: ours(replace(dense, steps=count)) for count in counts}, rounds)


def arithmetic(shares: Sequence[float], base: Setting, rounds: int) -> Sizes:
    """HARP's step against the multiply-accumulates of networks of other widths."""
    nets = [narrowed(base.architecture, share) for share in shares]
    steps = {
        macs(build(arch).eval(), arch.shape): ours(replace(base, architecture=arch))
        for arch in nets
    }
    return _race(steps, rounds)


def narrowed(arch: Architecture, share: float) -> Architecture:
    """The network with this share of the channels of every group."""
    net = build(arch)
    groups = couple(net, arch.shape)
    remove(net, groups, {g.name: torch.arange(g.width) < share * g.width for g in groups})
    return replace(arch, widths=widths(net))


def scores(counts: Sequence[int], rounds: int) -> Sizes:
    """The mask of one layer against its weights."""

    def select(count: int) -> Callable[[], float]:
        drawn = torch.rand(count, generator=torch.Generator().manual_seed(0))
        return stopwatch(lambda: keep_top(drawn, round(KEPT * count)))

    return _race({count: select(count) for count in counts}, rounds)


def verification(counts: Sequence[int], settings: Settings, rounds: int) -> Sizes:
    """All that `verify` does to one exported network, against the images.

    A small network on random images, whose labels are its own answers: all are right as they are
    and stay in the batch until the end, as with a robust network.
    """
    net = build(TINY).eval()
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (max(counts), *TINY.shape), dtype=torch.uint8, generator=draw)
    labels = predict(net, pixels).argmax(dim=1)
    split = Split(pixels, labels, torch.arange(len(labels)))
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(net, TINY.shape, Path(folder, "model.onnx"))
        engines = {"fp32": load(Path(folder, "model.onnx"))}

        def judge(count: int) -> Callable[[], float]:
            chosen = replace(settings, images=count)
            return stopwatch(lambda: verify({"net": net}, engines, split, NEAR, "", chosen))

        return _race({count: judge(count) for count in counts}, rounds)


def _race(contestants: dict[int, Callable[[], float]], rounds: int) -> Sizes:
    times = race({str(size): contestant for size, contestant in contestants.items()}, rounds)
    return {int(size): seconds for size, seconds in times.items()}


def exponents(sizes: Sizes) -> list[float]:
    """The power with which the time grows, round by round."""
    logs = [math.log(size) for size in sizes]
    rounds = zip(*sizes.values(), strict=True)
    return [linear_regression(logs, [math.log(s) for s in seconds]).slope for seconds in rounds]


def explained(sizes: Sizes) -> float:
    """R^2 of the line through the medians of the seconds."""
    return correlation(list(sizes), [median(seconds) for seconds in sizes.values()]) ** 2


def memory(rounds: int) -> Times:
    """Peak bytes of dense adversarial training and of HARP's search, in fresh processes."""
    return {kind: [_peak_of(kind) for _ in range(rounds)] for kind in ("dense", "search")}


def _peak_of(kind: str) -> float:
    words = [sys.executable, __file__, "--peak", kind]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def peak(setting: Setting) -> int:
    """By how many bytes two steps raise the most that this process ever held; once a process."""
    before = peak_memory()
    ours(setting)()
    return peak_memory() - before


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only to try it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GROWING)}")
    parser.add_argument("--peak", choices=["search", "dense"], help="bytes of one kind of step")
    options = parser.parse_args(words)
    base, rounds = tiny(Setting()) if options.quick else Setting(), options.rounds
    if options.peak:
        sys.stdout.write(f"{peak(replace(base, masks=options.peak == 'search'))}\n")
        return
    small = Settings(steps=2, restarts=1, queries=5, fmn=3, health=8)
    quick = options.quick
    checked = (8, 16), small, rounds
    measures: dict[str, Callable[[], Sizes]] = {
        "images": lambda: images((4, 8) if quick else BATCHES, base, rounds),
        "attack": lambda: attack_steps((1, 2) if quick else STEPS, base, rounds),
        "macs": lambda: arithmetic((0.5, 1.0) if quick else SHARES, base, rounds),
        "masks": lambda: scores((1000, 4000) if quick else SCORES, rounds),
        "verification": lambda: verification(
            *(checked if quick else (VERIFIED, Settings(), rounds))
        ),
    }
    for name in options.names or GROWING:
        sizes = measures[name]()
        power = spread(exponents(sizes))
        points = ", ".join(f"{size:,}: {median(times):.3g} s" for size, times in sizes.items())
        sys.stdout.write(
            f"{GROWING[name]}: power {power.median:.2f} ({power.low:.2f}-{power.high:.2f}), "
            f"R^2 {explained(sizes):.4f}; {points}\n"
        )
    if not quick and not options.names:  # a tiny network raises no peak
        for kind, held in memory(rounds).items():
            sys.stdout.write(f"memory, {kind}: {median(held) / 1e9:.2f} GB\n")
    sys.stdout.write(f"{conditions(rounds)}, fp32\n")


if __name__ == "__main__":
    main()
