"""Contestants timed side by side: in one process, in turn, round after round.

A round times every contestant once, the next one backwards, after a round that does not count. The
speed-up of a contestant is taken within each round, so that what the machine does beside it
touches both sides; median, quartiles and range are those of the rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

# Does its work once; the seconds that the part to be measured took.
Contestant = Callable[[], float]
# By contestant, the first one being the reference: an entry for each round.
Times = dict[str, list[float]]


class Spread(NamedTuple):
    """Of the rounds of one measurement."""

    median: float
    low: float
    lower_quartile: float
    upper_quartile: float
    high: float


def stopwatch(work: Callable[[], object], device: str = "cpu") -> Contestant:
    """The seconds of the whole of `work`, until the device has done it."""
    read = clock(device)

    def run() -> float:
        started = read()
        work()
        return read() - started

    return run


def clock(device: str) -> Callable[[], float]:
    """Seconds, read when all that was asked of the device is done."""

    def read() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def race(contestants: Mapping[str, Contestant], rounds: int) -> Times:
    """Time all contestants, `rounds` times over, after a round of warm-up."""
    for contestant in contestants.values():
        contestant()
    times: Times = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)
        for name in reversed(names) if number % 2 else names:
            times[name].append(contestants[name]())
    return times


def ratios(times: Times) -> Times:
    """How many times as fast as the first contestant each one was, round by round."""
    reference = next(iter(times.values()))
    return {
        name: [slow / fast for slow, fast in zip(reference, seconds, strict=True)]
        for name, seconds in times.items()
    }


def spread(values: Sequence[float]) -> Spread:
    """Median, range and quartiles; of a single value, that value."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, min(values), lower, upper, max(values))


def table(times: Times, images: int | None = None) -> str:
    """Markdown: a line for each contestant; images per second, where one time is of `images`."""
    head = ["contestant", "seconds", "quartiles", "speed-up", "quartiles"]
    lines = [head + ["images/s"] * (images is not None)]
    lines.append(["---"] + ["--:"] * (len(lines[0]) - 1))
    for (name, seconds), faster in zip(times.items(), ratios(times).values(), strict=True):
        took, gained = spread(seconds), spread(faster)
        line = [name, *_cells(took, ".3g"), *_cells(gained, ".1f")]
        lines.append(line if images is None else [*line, f"{images / took.median:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(values: Spread, form: str) -> tuple[str, str]:
    median, low, lower, upper, high = (f"{value:{form}}" for value in values)
    return f"**{median}** ({low}-{high})", f"{lower}-{upper}"


def conditions(rounds: int) -> str:
    """What every table must say of itself."""
    return f"{rounds} rounds; {torch.get_num_threads()} threads, torch {torch.__version__}"
