"""What a second rank and a shared store are worth: steps on 1 and 2 ranks, a sweep of 12 cells.

    .venv/bin/python benchmarks/scale.py [--quick] [--rounds N] [steps] [sweep]

Steps of adversarial training, `fit()` between two calls of its observer: one process of one thread;
two ranks (gloo) of one thread each, on the same batch (strong) and on one twice as large (weak).
They take turns within each round, so that what the machine does beside them touches all.

The sweep is `advprune sweep` over three methods and four sparsities, one cell at a time. Manifests
say how long each stage took; runs that share nothing would make every stage of every cell.
"""

import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from preset import COMMAND, QUICK
from rank_group import Ranks, Step, started, step
from sections import load, write_tables
from side_by_side import Contestant, conditions, race, spread
from training import RESNET18, TINY, Setting, tiny

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
# Digits as their preset trains them, and a network whose step is long beside its messages.
NETS = {
    "digits_resnet, 1x8x8, 64 images, 7 steps": Setting(
        masks=False, architecture=TINY, batch=64, steps=7, counted=8
    ),
    "resnet18, 3x32x32, 16 images, 10 steps": Setting(
        masks=False, architecture=RESNET18, batch=16, steps=10, counted=1
    ),
}
GRID = {"method": "magnitude,random,hydra", "sparsity": "0.5,0.8,0.9,0.95"}
# Little enough to run twelve times, and a dense network that 8 bits leave as it is.
SETTINGS = {
    **QUICK,
    "threads": 1,
    "limit_test": 200,
    "attack_steps": 3,
    "adversarial.epochs": 4,
    "finetune.epochs": 2,
}


# Steps ------------------------------------------------------------------------------------------


class Round(NamedTuple):
    """Of one process, of two ranks on the same batch, and of two on twice as many images."""

    one: Step
    strong: Sequence[Step]
    weak: Sequence[Step]


def rounds_of(setting: Setting, ranks: Ranks, rounds: int) -> list[Round]:
    """Steps in turn, round by round."""
    larger = replace(setting, batch=2 * setting.batch)
    work: list[Callable[[], Sequence[Step]]] = [
        lambda: [step(setting)],
        lambda: ranks.step(setting),
        lambda: ranks.step(larger),
    ]
    steps: list[list[Sequence[Step]]] = [[] for _ in work]

    def contestant(place: int) -> Contestant:
        def run() -> float:
            steps[place].append(work[place]())
            return steps[place][-1][0].wall

        return run

    race({str(place): contestant(place) for place in range(len(work))}, rounds)
    one, strong, weak = (found[1:] for found in steps)  # the first warmed up
    return [Round(a[0], b, c) for a, b, c in zip(one, strong, weak, strict=True)]


def efficiency(one: Step, ranks: Sequence[Step], images: int) -> tuple[float, float]:
    """Of ranks that did `images` times the images of one: by the clock, and in processor seconds.

    What all did over what as many as there are would do, if each did as well as one.
    """
    slowest = max(rank.wall for rank in ranks)
    computed = sum(rank.processor for rank in ranks)
    return images * one.wall / (len(ranks) * slowest), images * one.processor / computed


def summing(ranks: Sequence[Step]) -> float:
    """The share of a step that ranks spend in all-reduce."""
    return sum(rank.summing / rank.wall for rank in ranks) / len(ranks)


def lines_of(name: str, found: Sequence[Round]) -> list[str]:
    """Of the table: strong, then weak."""
    lines = []
    for kind, images in (("strong", 1), ("weak", 2)):
        pairs = [(one.one, one.strong if kind == "strong" else one.weak) for one in found]
        both = [efficiency(one, ranks, images) for one, ranks in pairs]
        cells = (
            f"{spread([one.wall for one, _ in pairs]).median:.3g}",
            f"{spread([max(rank.wall for rank in ranks) for _, ranks in pairs]).median:.3g}",
            _percent([wall for wall, _ in both]),
            _percent([processor for _, processor in both]),
            _percent([summing(ranks) for _, ranks in pairs]),
        )
        lines.append(f"| {' | '.join((name, kind, *cells))} |")
    return lines


def _percent(values: Sequence[float]) -> str:
    found = spread([100 * value for value in values])
    return f"**{found.median:.0f} %** ({found.low:.0f}-{found.high:.0f})"


def steps_table(rounds: int, quick: bool) -> str:
    head = [
        "| step | scaling | s, 1 rank | s, 2 ranks | efficiency | of processors | summing |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    with started(2) as ranks:
        for name, setting in NETS.items():
            chosen = tiny(setting) if quick else setting
            head += lines_of(name, rounds_of(chosen, ranks, rounds))
    return "\n".join(head) + f"\n\n{conditions(rounds)}, {load()}"


# The sweep --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """Of one stage in a sweep: times and seconds that it was made, and would have been."""

    times: int
    seconds: float
    unshared_times: int
    unshared_seconds: float


def stages_of(runs: Path) -> dict[str, Made]:
    """By stage, in the order of a run, of all finished runs of a folder."""
    once: dict[Path, tuple[str, float]] = {}
    every: Counter[Path] = Counter()
    for link in sorted(runs.glob("*/[0-9][0-9]_*"), key=lambda path: path.name):
        if not link.parent.is_symlink():  # `latest` is one of the others
            manifest = json.loads((link / "manifest.json").read_text())
            place = link.resolve()
            once[place] = (manifest["stage"], manifest["seconds"])
            every[place] += 1
    found: dict[str, Made] = {}
    for stage in dict.fromkeys(name for name, _ in once.values()):
        places = [place for place, (name, _) in once.items() if name == stage]
        found[stage] = Made(
            len(places),
            sum(once[place][1] for place in places),
            sum(every[place] for place in places),
            sum(every[place] * once[place][1] for place in places),
        )
    return found


def sweep_table(_rounds: int, quick: bool) -> str:
    grid = {key: value.partition(",")[0] if quick else value for key, value in GRID.items()}
    words = [word for key, value in grid.items() for word in ("--grid", f"{key}={value}")]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        subprocess.run(
            [*COMMAND, "sweep", *words, "--runs", runs], check=True, stdout=subprocess.DEVNULL
        )
        took = time.perf_counter() - began
        return sweep_lines(stages_of(Path(runs)), took)


def sweep_lines(found: dict[str, Made], took: float) -> str:
    lines = [
        "| stage | made | for cells | seconds | seconds, nothing shared |",
        "|---|--:|--:|--:|--:|",
    ]
    every = {**found, "**all**": _all(list(found.values()))}
    for stage, made in every.items():
        lines.append(
            f"| {stage} | {made.times} | {made.unshared_times} | {made.seconds:.1f} | "
            f"{made.unshared_seconds:.1f} |"
        )
    total = every["**all**"]
    return "\n".join(lines) + (
        f"\n\nShared: {total.times} of {total.unshared_times} stages were made, in "
        f"{100 * total.seconds / total.unshared_seconds:.0f} % of their seconds. The whole sweep "
        f"took {took:.0f} s, of which {took - total.seconds:.0f} s are of processes that begin, "
        f"read, wait and end. {load()}."
    )


def _all(each: Sequence[Made]) -> Made:
    return Made(
        sum(one.times for one in each),
        sum(one.seconds for one in each),
        sum(one.unshared_times for one in each),
        sum(one.unshared_seconds for one in each),
    )


def main(words: Sequence[str] | None = None) -> None:
    write_tables("scale", {"steps": steps_table, "sweep": sweep_table}, PAGE, 7, words)


if __name__ == "__main__":
    main()
