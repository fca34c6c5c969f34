"""What `advprune plan --gpus N` says beside what training then takes: two recipes, 1 and 2 ranks.

    .venv/bin/python benchmarks/planned.py [--quick] [--rounds N] [step] [runs]

Every round tries the steps that an estimate is made of, then trains, for each of the four in turn.
The link between the ranks is measured too: the seconds of a small sum and of one of a million.
Trained is what the manifests of the stages say, which includes what an estimate leaves out.

How much that is of a step: the step that an estimate tries beside those of `fit()`, in turn, in
seconds of the processor, which other work does not lengthen; and by the clock, which it does.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from preset import COMMAND, QUICK, stages
from rank_group import Ranks, started
from sections import load, write_tables
from side_by_side import conditions, spread
from training import Watch

from advprune.method import PruningMethod, Task
from advprune.train import Schedule, fit
from pipeline.beginning import begin
from pipeline.capacity import Link, estimate, total
from pipeline.probe import PROBED, Probe, trainings, works
from pipeline.recipe import Recipe
from pipeline.resolve import resolve
from pipeline.stages.data import load_images, sample_images

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
COMMON = {
    **QUICK,
    "method": "hydra",
    "sparsity": 0.8,
    "threads": 1,
    "attack_steps": 7,
    "adversarial.rise": 0,
    "prune.rise": 0,
    "finetune.rise": 0,
}
RECIPES = {
    "1,024 images, 2 + 2 + 2 + 2 epochs": {
        "limit_train": 1024,
        "standard.epochs": 2,
        "adversarial.epochs": 2,
        "prune.epochs": 2,
        "finetune.epochs": 2,
    },
    "all images, 2 + 6 + 4 + 4 epochs": {
        "standard.epochs": 2,
        "adversarial.epochs": 6,
        "prune.epochs": 4,
        "finetune.epochs": 4,
    },
}
SMALL = 256  # numbers of a message, about those of a batch norm; of one, gloo sends less often
MILLION = 1_000_000

Clock = Callable[[], float]


def link_between(ranks: Ranks) -> Link:
    """As two ranks of this machine have it: a small sum is all delay, of a large one the rest."""
    base, large = ranks.message(SMALL), ranks.message(MILLION)
    return Link("gloo", 4.0 * MILLION / max(large - base, 1e-9), 0.0, base)


def planned(recipe: Recipe, count: int, link: Link) -> float:
    """Seconds of all stages that train, by steps that are tried now."""
    images, sizes = sample_images(recipe, PROBED)
    stages = [estimate(work, count, link) for work in works(recipe, images, sizes["train"])]
    return total(stages, count).seconds


def trained(settings: dict[str, object], names: Sequence[str], count: int) -> float:
    """Seconds of the stages of these names in a run of its own."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as runs:
        run = [*COMMAND, "run", *words, "--runs", runs, "--nproc", str(count)]
        code = subprocess.run(run, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 10, 11):
            raise SystemExit(f"planned: {' '.join(run)} ended with {code}")
        found = stages(Path(runs))
    return sum(found[name] for name in names)


def step_table(rounds: int, quick: bool) -> str:
    """Markdown: milliseconds of a step as it is tried, as `fit()` takes it, and in a search."""
    recipe, _sources = resolve({**COMMON, "attack_steps": 1 if quick else 7}, environment={})
    images = load_images(recipe)
    few = replace(images, train=images.train.first(4 * PROBED), val=images.val.first(1))
    objective = recipe.robust_objective(recipe.adversarial)
    tried = Probe(recipe, images).step(objective, PROBED)
    task = Task(objective, 0, images.shape)
    schedule = Schedule(epochs=1, batch_size=PROBED, validate_every=0)

    def trained(clock: Clock, method: PruningMethod | None) -> list[float]:
        watch = Watch(clock)
        fit(begin(recipe, images).net, few, task, schedule, watch, method)
        return [after - before for before, after in pairwise(watch.readings)]

    def trying(clock: Clock) -> list[float]:
        readings = [clock() for _ in range(4) if tried()]
        return [after - before for before, after in pairwise(readings)]

    kinds: dict[str, Callable[[Clock], list[float]]] = {
        "tried": trying,
        "of `fit()`": lambda clock: trained(clock, None),
        "of `fit()` with HYDRA's masks": lambda clock: trained(clock, recipe.pruning_method()),
    }
    clocks = (time.process_time, time.perf_counter)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in kinds}
    for _ in range(rounds + 1):
        for name, take in kinds.items():
            for seconds, clock in zip(found[name], clocks, strict=True):
                seconds += take(clock)
    lines = [
        "| a step | ms of the processor | beside the one tried | ms by the clock | least |",
        "|---|--:|--:|--:|--:|",
    ]
    first = median(found["tried"][0])
    for name, (processor, wall) in found.items():
        mine = median(processor)
        lines.append(
            f"| {name} | {1e3 * mine:.1f} | {mine / first:.2f} | {1e3 * median(wall):.1f} "
            f"| {1e3 * min(wall):.1f} |"
        )
    steps = len(found["tried"][0])
    return "\n".join(lines) + f"\n\n{steps} steps each, medians; {conditions(rounds)}, {load()}"


def runs_table(rounds: int, quick: bool) -> str:
    """Markdown: a line for each recipe and number of ranks."""
    ratios: dict[tuple[str, int], list[tuple[float, float]]] = {}
    links: list[Link] = []
    for _ in range(rounds):
        with started(2) as ranks:
            links.append(link_between(ranks))
        for name, changes in RECIPES.items():
            settings = {**COMMON, **({} if quick else changes)}
            recipe, _sources = resolve(settings, environment={})
            names = list(trainings(recipe))
            for count in (1, 2):
                said = planned(recipe, count, links[-1])
                took = trained(settings, names, count)
                ratios.setdefault((name, count), []).append((said, took))
    lines = [
        "| recipe | ranks | s, planned | s, trained | trained / planned |",
        "|---|--:|--:|--:|--:|",
    ]
    for (name, count), pairs in ratios.items():
        said, took, ratio = (
            spread(values)
            for values in ([a for a, _ in pairs], [b for _, b in pairs], [b / a for a, b in pairs])
        )
        lines.append(
            f"| {name} | {count} | {said.median:.1f} ({said.low:.1f}-{said.high:.1f}) "
            f"| {took.median:.1f} ({took.low:.1f}-{took.high:.1f}) "
            f"| **{ratio.median:.2f}** ({ratio.low:.2f}-{ratio.high:.2f}) |"
        )
    delay = spread([1e6 * link.base for link in links])
    rate = spread([link.rate / 1e9 for link in links])
    return "\n".join(lines) + (
        f"\n\nThe link: {delay.median:.0f} microseconds a message "
        f"({delay.low:.0f}-{delay.high:.0f}), {rate.median:.2f} GB/s "
        f"({rate.low:.2f}-{rate.high:.2f}). {conditions(rounds)}, {load()}"
    )


def main(words: Sequence[str] | None = None) -> None:
    write_tables("planned", {"step": step_table, "runs": runs_table}, PAGE, 3, words)


if __name__ == "__main__":
    main()
