"""The README's table: every method of the spine at 99 % on digits, int8 engine, three seeds.

    .venv/bin/python benchmarks/digits.py            # about a minute per row and seed on two cores

Runs are cached in `runs/`; a second call only prints. Numbers are the median over the seeds, with
the lowest and highest; nothing was chosen by looking at the test split.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

ROWS: list[tuple[str, list[str]]] = [
    ("harp", []),
    ("hydra", []),
    ("hydra", ["--allocation", "erk"]),
    ("magnitude", []),
    ("magnitude", ["--allocation", "uniform"]),
    ("magnitude", ["--allocation", "erk"]),
    ("magnitude", ["--allocation", "lamp"]),
    ("random", []),
]
DONE = (0, 10, 11)  # verdicts; anything else is a failed run


def measure(method: str, options: list[str], sparsity: str, seed: int) -> dict[str, Any]:
    command = ["advprune", "run", "--json", "--method", method, "--sparsity", sparsity]
    command += ["--seed", str(seed), *options]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *command[1:]], capture_output=True, text=True
    )
    if done.returncode not in DONE:
        raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def cell(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    spread = f" [{100 * low:.1f}–{100 * high:.1f}]" if len(values) > 1 else ""
    return f"{100 * middle:.1f}{spread}"


def row(name: str, reports: list[dict[str, Any]]) -> str:
    engines = [{engine["name"]: engine for engine in report["engines"]} for report in reports]
    clean = cell([engine["int8"]["clean"]["value"] for engine in engines])
    worst = cell([engine["int8"]["worst"]["value"] for engine in engines])
    floats = cell([engine["fp32"]["worst"]["value"] for engine in engines])
    kilobytes = statistics.median(engine["int8"]["compressed_bytes"] for engine in engines) / 1000
    verdicts = " ".join(report["verdict"]["status"] for report in reports)
    return f"| {name} | {clean} | {worst} | {floats} | {kilobytes:.1f} | {verdicts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsity", default="0.99")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out = sys.stdout
    out.write("| method | clean int8 % | worst case int8 % | worst case fp32 % | ")
    out.write("download kB | verdicts |\n|---|--:|--:|--:|--:|---|\n")
    for method, flags in ROWS:
        reports = [measure(method, flags, options.sparsity, seed) for seed in range(options.seeds)]
        out.write(row(" ".join([method, *flags[1:]]), reports) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
