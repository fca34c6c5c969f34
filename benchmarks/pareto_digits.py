"""What removed channels buy and cost: latency against robust accuracy on digits -> docs/results.md.

    .venv/bin/python benchmarks/pareto_digits.py      # resumable

The dense networks, the objective and the 18 epochs after it are those of `methods_digits.py`. When
all runs are there, the int8 files of the first seed are timed in this process, call by call in
turn, with the dense network's in float32 and in int8: microseconds of runs that trained side by
side would say little.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grid import Job, Result, run
from methods_digits import SEEDS, SHARED, spent
from sections import write_section

from deploy.bench import Latency, interleaved
from deploy.runtime import load
from pipeline.stages.export import X86
from pipeline.stages.quantize import FLOAT

TARGETS = (0.5, 0.75, 0.875)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "harp, channel": ("harp", {"options.granularity": "channel"}),
    # The same share of every group, as R-ADMM has it: a global order starves the last ones.
    "magnitude, filter": (
        "magnitude",
        {"options.granularity": "filter", "options.allocation": "uniform"},
    ),
    "anp_vs": ("anp_vs", {}),
    "twinrep, channel": ("twinrep", {"options.granularity": "channel"}),
    "radmm, filter": ("radmm", {"options.granularity": "filter"}),
}
# Of 32 channels an eighth are four.
WIDTHS = {"options.min_channels": 4, "options.round_to": 4}
DENSE = "nothing removed"
CALLS = 1000


def jobs() -> list[Job]:
    rows = [
        (row, method, options | WIDTHS, target)
        for row, (method, options) in ROWS.items()
        for target in TARGETS
    ]
    rows.append((DENSE, "magnitude", {}, 0.0))
    return [
        Job(row, target, seed, {"method": method, **options, **spent(method), **SHARED})
        for seed in SEEDS
        for row, method, options, target in rows
    ]


def timed(results: Sequence[Result]) -> dict[tuple[str, float] | str, Latency]:
    """Of each row and target the int8 file of the first seed; and the dense one in float32."""
    first = {(r.job.row, r.job.sparsity): r for r in results if r.job.seed == SEEDS[0]}
    files: dict[tuple[str, float] | str, Path] = {
        key: result.files / X86 for key, result in first.items() if not result.refused
    }
    files["fp32"] = first[DENSE, 0.0].files / FLOAT
    engines = {key: load(path) for key, path in files.items()}
    images = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    measured = interleaved(
        {str(key): engine for key, engine in engines.items()}, images, warmup_s=0.2, calls=CALLS
    )
    return {key: measured[str(key)] for key in engines}


def table(results: Sequence[Result], latency: Mapping[tuple[str, float] | str, Latency]) -> str:
    """Markdown; a star marks rows that no other row beats in both accuracy and throughput."""
    slow = latency["fp32"]
    points = {}
    for key, measured in latency.items():
        found = [r for r in results if (r.job.row, r.job.sparsity) == key and not r.refused]
        if isinstance(key, tuple) and found:
            points[key] = (found, measured)
    lines = [
        "| method | channels removed | clean | worst case | int8, one image | batches of 128 "
        "| against dense fp32 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    scores = {
        key: (statistics.mean(r.worst for r in found), measured.throughput)
        for key, (found, measured) in points.items()
    }
    for key in sorted(points, key=lambda key: (key[1], -scores[key][0])):
        found, measured = points[key]
        worst = [100 * r.worst for r in found]
        spread = f" ± {statistics.stdev(worst):.1f}" if len(worst) > 1 else ""
        doubted = "†" * sum(r.status not in ("PASS", "FAIL") for r in found)
        beaten = any(
            other[0] >= scores[key][0] and other[1] >= scores[key][1] and other != scores[key]
            for other in scores.values()
        )
        removed = [100 * r.channels for r in found]
        lines.append(
            f"| {key[0]}{'' if beaten else ' ★'} | {statistics.mean(removed):.1f} % "
            f"| {100 * statistics.mean(r.clean for r in found):.1f} "
            f"| **{statistics.mean(worst):.1f}**{spread}{doubted} "
            f"| {1e3 * measured.p50_ms:.0f} µs | {measured.throughput:,.0f}/s "
            f"| {slow.p50_ms / measured.p50_ms:.1f}×, "
            f"{measured.throughput / slow.throughput:.1f}× |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    todo = jobs()
    started = time.monotonic()
    results = run(todo, options.runs, options.workers)
    text = table(results, timed(results))
    write_section("pareto", text)
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(f"{text}\n{len(todo)} runs in {minutes:.1f} minutes\n")


if __name__ == "__main__":
    main()
