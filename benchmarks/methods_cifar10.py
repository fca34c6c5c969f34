"""Seven methods on 10,000 images of CIFAR-10, ResNet-20, at 90 and 95 % -> docs/results.md.

    .venv/bin/python benchmarks/methods_cifar10.py --data folder:PATH      # resumable

PATH holds CIFAR-10 as an ImageFolder with train/ and test/. One seed and few epochs: a trial of the
methods on colour images, not a result. The budget is shared as in `methods_digits.py`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from grid import Job, budget, run, table
from sections import write_section

METHODS = ("harp", "hydra", "radmm", "mad", "gap", "magnitude", "random")
SPARSITIES = (0.9, 0.95)
EPOCHS, SEARCH = 5, 2
SETTINGS: dict[str, Any] = {
    "preset": "subset",
    "limit_train": 10_000,
    "limit_test": 400,
    "attack_steps": 2,
    "adversarial.epochs": 5,
    "quantize.how": "ptq",
    "threads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    todo = [
        Job(
            method,
            sparsity,
            0,
            {"method": method, "data": options.data, **SETTINGS, **budget(method, EPOCHS, SEARCH)},
        )
        for sparsity in SPARSITIES
        for method in METHODS
    ]
    started = time.monotonic()
    results = run(todo, options.runs, options.workers)
    text = table(results, METHODS, SPARSITIES)
    write_section("cifar10", text)
    sys.stdout.write(f"{text}\n{len(todo)} runs in {(time.monotonic() - started) / 60:.1f} min\n")


if __name__ == "__main__":
    main()
