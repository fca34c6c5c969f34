"""Every method on digits at four sparsities, three seeds, one budget -> docs/results.md.

    .venv/bin/python benchmarks/methods_digits.py --variants      # resumable

The same dense network of each seed, the same objective (PGD-AT, 7 steps), the same 18 epochs after
it: methods that search spend 8 of them on that and 10 on fine-tuning, methods that read their masks
off the network spend all 18 on fine-tuning, and the scratch ticket, which has nothing to fine-tune,
all 18 on its search. Validation chose nothing here and the test split nothing anywhere.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from grid import Job, budget, run, table
from sections import write_section

from advprune.method import get, names

SPARSITIES = (0.5, 0.9, 0.95, 0.99)
SEEDS = (0, 1, 2)
EPOCHS, SEARCH = 18, 8
# Calibration alone: training through 8 bits would be epochs beyond the budget.
SHARED = {
    "quantize.how": "ptq",
    "verify.steps": 20,
    "verify.restarts": 1,
    "verify.queries": 300,
}
# Beside every method with its defaults: what its paper or later comparisons also report.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hydra, ERK": ("hydra", {"options.allocation": "erk"}),
    "magnitude, ERK": ("magnitude", {"options.allocation": "erk"}),
}


def jobs(variants: bool) -> list[Job]:
    # Methods that only remove channels have a table of their own (`pareto_digits.py`).
    scattered = [name for name in names() if not get(name)().shrinks]
    rows = {name: (name, {}) for name in scattered} | (VARIANTS if variants else {})
    return [
        Job(row, sparsity, seed, {"method": method, **options, **spent(method), **SHARED})
        for seed in SEEDS
        for row, (method, options) in rows.items()
        for sparsity in SPARSITIES
    ]


def spent(method: str) -> dict[str, int]:
    """The scratch ticket has nothing to fine-tune: all of its epochs are search."""
    return budget(method, EPOCHS, EPOCHS if method == "rst" else SEARCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--variants", action="store_true", help="with ERK densities as well")
    options = parser.parse_args()
    todo = jobs(options.variants)
    started = time.monotonic()
    results = run(todo, options.runs, options.workers)
    minutes = (time.monotonic() - started) / 60
    rows = list(dict.fromkeys(job.row for job in todo))
    rows.sort(key=lambda row: -_mean_worst(results, row))
    text = table(results, rows, SPARSITIES)
    write_section("digits", text)
    sys.stdout.write(f"{text}\n{len(todo)} runs in {minutes:.1f} minutes\n")


def _mean_worst(results: list, row: str) -> float:
    """The order of the rows: the mean over all runs of a row."""
    worst = [r.worst for r in results if r.job.row == row and not r.refused]
    return sum(worst) / len(worst) if worst else 0.0


if __name__ == "__main__":
    main()
