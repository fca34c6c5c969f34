"""Runs of the pipeline over methods, sparsities and seeds, side by side, into one table.

Every run is cached stage by stage in `--runs`, so an interrupted grid goes on where it stopped, and
a second call only prints.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from pipeline.run import Outcome


@dataclass(frozen=True)
class Job:
    """One run: the row of the table that it belongs to, its sparsity, its seed, its settings."""

    row: str
    sparsity: float
    seed: int
    settings: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Result:
    """What one run measured on the int8 engine, in [0, 1]; or why there is none.

    Attributes:
        float_worst: the worst case of the float engine.
        channels: the share of channels that were removed, 0 where none can be.
        files: the folder of the exported files.
    """

    job: Job
    clean: float = math.nan
    worst: float = math.nan
    status: str = ""
    refused: str = ""
    channels: float = 0.0
    files: Path = Path()
    float_worst: float = math.nan


R = TypeVar("R", bound=Result)


def budget(method: str, epochs: int, search: int) -> dict[str, int]:
    """How a method spends the epochs that all methods get; `search` of them, where it searches."""
    from advprune.method import get

    if get(method)().searches:
        return {"prune.epochs": search, "finetune.epochs": epochs - search}
    return {"finetune.epochs": epochs}


def outcome_of(job: Job, runs: Path) -> "Outcome":
    """Run one job in this process. Raises Refused where the pipeline does."""
    from advprune.errors import Busy
    from pipeline.resolve import resolve
    from pipeline.run import execute
    from pipeline.screen import Screen

    budget = {"sparsity": job.sparsity, "seed": job.seed}
    recipe, sources = resolve({**job.settings, **budget}, environment={})
    while True:
        try:
            return execute(recipe, sources, runs, Screen(Console(quiet=True)))
        except Busy:  # the other worker makes a stage that both need
            time.sleep(1.0)


def measure(job: Job, runs: Path) -> Result:
    """Run one job in this process; a refusal is a result."""
    from advprune.errors import Refused

    try:
        outcome = outcome_of(job, runs)
    except Refused as refusal:
        return Result(job, refused=str(refusal))
    report = json.loads(outcome.artifacts["report"].read("report.json"))
    engines = {engine["name"]: engine for engine in report["engines"]}
    int8 = engines["int8"]
    status = report["verdict"]["status"]
    groups = (report["structure"] or {}).get("groups", [])
    before, after = (sum(group[key] for group in groups) for key in ("before", "after"))
    return Result(
        job,
        int8["clean"]["value"],
        int8["worst"]["value"],
        status,
        channels=1 - after / before if groups else 0.0,
        files=outcome.artifacts["export"].path.resolve(),
        float_worst=engines["fp32"]["worst"]["value"],
    )


def run(
    jobs: Sequence[Job],
    runs: Path,
    workers: int,
    measure: Callable[[Job, Path], R] = measure,
    tell: Callable[[R], None] = lambda _: None,
) -> list[R]:
    """All jobs, `workers` at a time, one thread each.

    The first job of each seed goes ahead of the others, which share its dense network.

    Args:
        measure: runs one job, in a process of its own.
        tell: is given every result when it is there.
    """
    first = {job.seed: job for job in reversed(jobs)}
    waves = [list(first.values()), [job for job in jobs if job not in first.values()]]
    results: list[R] = []
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited; threads that share cores wait by spinning
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for wave in waves:
            for future in as_completed([pool.submit(measure, job, runs) for job in wave]):
                result = future.result()
                results.append(result)
                tell(result)
                job = result.job
                outcome = result.refused or f"{100 * result.clean:.1f} / {100 * result.worst:.1f}"
                minutes = (time.monotonic() - started) / 60
                sys.stdout.write(
                    f"{len(results)}/{len(jobs)} {minutes:5.1f} min  {job.row} {job.sparsity:g} "
                    f"seed {job.seed}: {outcome} {result.status}\n"
                )
                sys.stdout.flush()
    return results


def table(results: Sequence[Result], rows: Sequence[str], sparsities: Sequence[float]) -> str:
    """Markdown: a line for each row, clean / worst case ± standard deviation at each sparsity."""
    head = " | ".join(f"{100 * sparsity:g} %" for sparsity in sparsities)
    lines = [f"| method | {head} |", "|---|" + "--:|" * len(sparsities)]
    for row in rows:
        cells = []
        for sparsity in sparsities:
            found = [r for r in results if r.job.row == row and r.job.sparsity == sparsity]
            cells.append(_cell(found))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Sequence[Result]) -> str:
    done = [result for result in results if not result.refused]
    if not done:
        return "refused"
    clean = 100 * statistics.mean(result.clean for result in done)
    worst = [100 * result.worst for result in done]
    spread = f" ± {statistics.stdev(worst):.1f}" if len(worst) > 1 else ""
    doubted = sum(result.status not in ("PASS", "FAIL") for result in done)
    marks = "†" * doubted + "".join(" (a seed refused)" for _ in results[len(done) :])
    return f"{clean:.1f} / **{statistics.mean(worst):.1f}**{spread}{marks}"
