"""Every goal of speed and memory, measured -> RESULTS.md.

    .venv/bin/python benchmarks/goals.py                # all that this machine can measure
    .venv/bin/python benchmarks/goals.py NAME...        # some of them; the other rows stay

Goals that have a benchmark of their own are quoted from docs/results.md, where that wrote them.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import growth
import masks
import preset
import saliency
import training
from goal_table import Goal, from_markdown, show, to_markdown
from rich.console import Console
from sections import read_section, write_section
from side_by_side import Spread, Times, ratios, spread

from advprune.peak import measure
from deploy.suites import Settings

RESULTS = Path(__file__).parent / "RESULTS.md"
SECTION = "goals"
LINEAR = 1.1  # the power up to which growth counts as linear

PUBLISHED = "the published loop"
TEXTBOOK = "the textbook loop"


@cache
def steps(loop: str, device: str) -> Times:
    return training.compare(training.on(device, loop), rounds=3)


def step(loop: str, precision: str, device: str = "cpu") -> Spread:
    return spread(ratios(steps(loop, device))[f"ours, {precision}"])


def share(loop: str, precision: str, device: str) -> Spread:
    peak = measure(device)
    found = training.shares(training.on(device, loop), steps(loop, device), peak)
    return spread([100 * one for one in found[f"ours, {precision}"]])


def ratio(compare: Callable[[], Times]) -> Spread:
    return spread(ratios(compare())["ours"])


def power(measure: Callable[[], growth.Sizes]) -> Spread:
    return spread(growth.exponents(measure()))


def memory() -> Spread:
    peaks = growth.memory(rounds=2)
    return spread([s / d for s, d in zip(peaks["search"], peaks["dense"], strict=True)])


@cache
def presets() -> list[preset.Cost]:
    return [preset.run() for _ in range(2)]


def quoted(section: str, row: str, column: int) -> Spread:
    """A cell of a table of docs/results.md: its number, and its range where it has one."""
    lines = read_section(section).splitlines()
    cells = next(line for line in lines if line.startswith(f"| {row} |")).split("|")
    values = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cells[column])]
    return Spread(values[0], min(values), min(values), max(values), max(values))


def of_step(loop: str, against: str, bound: float, precision: str, device: str = "cpu") -> Goal:
    where = ", GPU" if device == "cuda" else ""
    what = f"one step of {loop}, ResNet-18, {precision}{where}"
    return Goal(what, against, bound, partial(step, loop, precision, device), device=device)


def of_growth(what: str, size: str, measure: Callable[[], growth.Sizes]) -> Goal:
    what = f"power with which the time of {what} grows"
    return Goal(what, f"the number of {size}", LINEAR, partial(power, measure), "", most=True)


SETTING = training.Setting(counted=1)  # of growth: many sizes
PRESET = f"`advprune {' '.join(preset.PRESET)}`"
GOALS: dict[str, Goal] = {
    "harp-step-fp32": of_step("HARP", PUBLISHED, 3, "fp32"),
    "harp-step-bf16": of_step("HARP", PUBLISHED, 6, "bf16"),
    "harp-step-gpu": of_step("HARP", PUBLISHED, 4, "bf16", "cuda"),
    "at-step-fp32": of_step("adversarial training", TEXTBOOK, 3.5, "fp32"),
    "at-step-bf16": of_step("adversarial training", TEXTBOOK, 3.5, "bf16"),
    "at-step-gpu": of_step("adversarial training", TEXTBOOK, 3, "bf16", "cuda"),
    "at-share-gpu": Goal(
        "FLOP/s of one step of adversarial training, ResNet-18, bf16, GPU",
        "those of a bf16 matrix product",
        35,
        partial(share, "adversarial training", "bf16", "cuda"),
        " %",
        device="cuda",
    ),
    "trades-step-fp32": of_step("HARP by TRADES", PUBLISHED, 9, "fp32"),
    "trades-step-bf16": of_step("HARP by TRADES", PUBLISHED, 9, "bf16"),
    **{
        f"masks-{model}-{density:g}": Goal(
            f"masks of all layers of {model}, density {density:g}, bit-equal",
            "a full sort",
            15,
            partial(ratio, partial(masks.compare, model, density, 9)),
        )
        for model in masks.MODELS
        for density in masks.DENSITIES
    },
    **{
        f"saliency-{shape.channels}": Goal(
            f"MAD's scores of a layer, {shape}, equal to {saliency.TOLERANCE:g}",
            "explicit factors and a loop over rows",
            15,
            partial(ratio, partial(saliency.compare, shape, 5)),
        )
        for shape in saliency.SHAPES
    },
    "growth-images": of_growth(
        "a HARP step", "images", partial(growth.images, growth.BATCHES, SETTING, 2)
    ),
    "growth-macs": of_growth(
        "a HARP step",
        "multiply-accumulates",
        partial(growth.arithmetic, growth.SHARES, SETTING, 2),
    ),
    "growth-masks": of_growth("a mask", "scores", partial(growth.scores, growth.SCORES, 3)),
    "growth-verification": of_growth(
        "verification", "images", partial(growth.verification, growth.VERIFIED, Settings(), 2)
    ),
    "memory-search": Goal(
        "peak memory of a HARP step, ResNet-18", "a dense step", 2.2, memory, most=True
    ),
    "preset-time": Goal(
        "the default preset from end to end",
        PRESET,
        90,
        lambda: spread([cost.seconds for cost in presets()]),
        " s",
        most=True,
    ),
    "preset-memory": Goal(
        "peak memory of the default preset",
        PRESET,
        1.5,
        lambda: spread([cost.peak / 1e9 for cost in presets()]),
        " GB",
        most=True,
    ),
    "help": Goal(
        "the command's first answer",
        "`advprune --help`",
        0.3,
        lambda: spread([preset.command(["--help"])[1] for _ in range(9)]),
        " s",
        most=True,
    ),
    "autoattack": Goal(
        "AutoAttack with equal effort",
        "pyautoattack, the whole batch kept",
        2,
        partial(quoted, "attacks", "pyautoattack | standard", 5),
        source="benchmarks/attacks.py",
    ),
    "latency": Goal(
        "int8 ResNet-18 without 75 % of its channels, one thread, each call in turn",
        "dense fp32",
        25,
        partial(quoted, "latency", "75 % | int8 | ONNX Runtime", 5),
        source="benchmarks/latency.py",
    ),
    "download": Goal(
        "size of 99 % sparse int8 ResNet-18, every layer alike",
        "dense fp32",
        200,
        partial(quoted, "download", "uniform", 3),
        source="benchmarks/download.py",
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GOALS)}")
    names = parser.parse_args(words).names
    names = names or [name for name, goal in GOALS.items() if goal.measurable]
    for name in names:
        if name not in GOALS or not GOALS[name].measurable:
            parser.error(f"{name!r} cannot be measured here; the goals are {', '.join(GOALS)}")
    outcomes = from_markdown(read_section(SECTION, RESULTS))
    for name in names:
        sys.stdout.write(f"measuring {name}\n")
        sys.stdout.flush()
        outcomes[name] = GOALS[name].outcome(GOALS[name].measure())
        # After each of them: what an interrupted call has measured stays.
        write_section(SECTION, to_markdown(GOALS, outcomes), RESULTS)
    show(GOALS, outcomes, Console())


if __name__ == "__main__":
    main()
