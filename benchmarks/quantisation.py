"""What 8 bits cost by calibration and by robust training, and who agrees -> docs/results.md.

    .venv/bin/python benchmarks/quantisation.py      # resumable

Digits, three seeds; the verdicts are those of the runs, by the `standard` suite. Agreement is
measured here, on all test images and on adversarial ones (PGD on the twin of the 8-bit file):
between what was trained, the twin, and two engines that run it on integers.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grid import Job, Result, run
from sections import write_section

from advprune.attacks.pgd_worst import pgd_worst
from advprune.data import as_float
from advprune.data import load as load_data
from advprune.evaluate import craft, predict
from advprune.twin import differentiable
from advprune.types import Threat
from deploy.runtime import load
from export.check import parity
from pipeline.stages.export import OPENVINO, X86
from pipeline.stages.quantize import INT8

SEEDS = (0, 1, 2)
WAYS = ("ptq", "qat", "auto")
NETWORKS = (("harp", 0.99), ("magnitude", 0.9))
EPS = 0.15
ENGINES = ("ONNX Runtime", "OpenVINO")


def jobs() -> list[Job]:
    return [
        Job(f"{method}, {way}", sparsity, seed, {"method": method, "quantize.how": way})
        for method, sparsity in NETWORKS
        for way in WAYS
        for seed in SEEDS
    ]


def agreement(files: Path) -> dict[str, list[dict[str, float]]]:
    """By engine, its parity with the twin on clean and on adversarial test images."""
    test = load_data("digits", data_dir=Path("data")).test
    twin = differentiable((files / INT8).read_bytes(), INT8)
    attack = partial(pgd_worst, steps=50, restarts=1)
    shown = [as_float(test.images), craft(twin, test, Threat(eps=EPS), 0, attack)]
    engines = (load(files / X86), load(files / OPENVINO, runtime="openvino"))
    trained = [predict(twin, images).numpy() for images in shown]
    return {
        name: [
            parity(expected, engine.predict(images.numpy()))
            for expected, images in zip(trained, shown, strict=True)
        ]
        for name, engine in zip(ENGINES, engines, strict=True)
    }


def verdicts_table(results: Sequence[Result]) -> str:
    lines = [
        "| network, 8 bits by | clean | worst case | float's | lost, by seed |",
        "|---|--:|--:|--:|--:|",
    ]
    for method, sparsity in NETWORKS:
        for way in WAYS:
            found = sorted(
                (r for r in results if r.job.row == f"{method}, {way}"), key=lambda r: r.job.seed
            )
            worst = [100 * r.worst for r in found]
            lost = [f"{100 * (r.float_worst - r.worst):+.1f}" for r in found]
            marks = "†" * sum(r.status not in ("PASS", "FAIL") for r in found)
            lines.append(
                f"| {method} {100 * sparsity:g} %, {way} "
                f"| {100 * statistics.mean(r.clean for r in found):.1f} "
                f"| **{statistics.mean(worst):.1f}** ± {statistics.stdev(worst):.1f}{marks} "
                f"| {100 * statistics.mean(r.float_worst for r in found):.1f} "
                f"| {', '.join(lost)} |"
            )
    return "\n".join(lines)


def agreement_table(results: Sequence[Result]) -> str:
    """The worst of all networks and seeds trained through 8 bits."""
    found = [agreement(r.files) for r in results if r.job.row.endswith("qat")]
    lines = [
        "| against the twin | same class, clean | adversarial | rows that differ, clean "
        "| adversarial |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in ENGINES:
        clean, adversarial = zip(*(one[name] for one in found), strict=True)
        same = [min(p["argmax_agreement"] for p in some) for some in (clean, adversarial)]
        rows = [max(p["rows_differing"] for p in some) for some in (clean, adversarial)]
        cells = [f"{100 * value:.2f} %" for value in (*same, *rows)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    results = run(jobs(), options.runs, options.workers)
    text = f"{verdicts_table(results)}\n\n{agreement_table(results)}"
    write_section("quantisation", text)
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(f"{text}\n{len(results)} runs in {minutes:.1f} minutes\n")


if __name__ == "__main__":
    main()
