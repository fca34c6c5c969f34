"""Every method on one network, one budget and one evaluation -> docs/results.md.

    .venv/bin/python benchmarks/fair.py --seeds 1      # resumable; more seeds add to what is there

The papers' checkpoints cannot be compared: five networks, as many budgets. Here every method has
20 epochs of PGD-AT (7 steps) in all, from the same random weights of a seed on, and spends them as
its authors do: on a dense network first (8) and then on search and fine-tuning (12); or, if it
prunes before or during training, all from the start. What its paper trains naturally is trained
adversarially. Calibration alone makes the 8 bits. Unstructured at 90, 95 and 99 %, whole channels
at 50, 75 and 90 %, each method by the granularity it has.

Measured on the int8 file: clean, the worst case of all attacks on every test image, distances to
the nearest adversarial image (FMN), and for the first seed AutoAttack on its differentiable twin,
on the first images. Each cell is a line of `fair-digits.jsonl`: verdicts image by image.
Runs stay in `--runs`: `advprune board build/fair` shows them.
"""

import argparse
import functools
import hashlib
import inspect
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fair_table import render
from grid import Job, Result, outcome_of, run
from judge import judge
from sections import write_section

CELLS = Path(__file__).with_name("fair-digits.jsonl")
SPARSITIES = {"US": (0.9, 0.95, 0.99), "S": (0.5, 0.75, 0.9)}
DENSE, SEARCH, AFTER = 8, 4, 12  # epochs; a search is a part of what comes after
TICKET = 8  # epochs of the search for a ticket, of the 20
AUTOATTACK_IMAGES = 32
SHARED: dict[str, Any] = {
    "standard.epochs": 0,
    "quantize.how": "ptq",
    "verify.steps": 20,
    "verify.restarts": 1,
    "verify.queries": 300,
    "verify.health": 64,
    "threads": 1,
}
# Of 32 channels an eighth are four.
WIDTHS = {"options.min_channels": 2, "options.round_to": 2}


@dataclass(frozen=True)
class Cell(Result):
    """A run, and its verdicts: a line of the file of cells."""

    line: Mapping[str, Any] = field(default_factory=dict)


def jobs(seeds: Iterable[int]) -> list[Job]:
    """Every method in all its forms, at three sparsities."""
    from advprune.method import names

    found = []
    for seed in seeds:
        for name in names():
            for structure, options in forms(name).items():
                for sparsity in SPARSITIES[structure]:
                    settings = {"method": name, **options, **epochs(name), **SHARED}
                    found.append(Job(f"{name} {structure}", sparsity, seed, settings))
    # Column by column, so that one that is broken off leaves whole ones behind; and what hardens a
    # dense network before what does not, for others share it.
    return sorted(
        found,
        key=lambda job: (
            job.seed,
            SPARSITIES[job.row.split()[1]].index(job.sparsity),
            job.settings["adversarial.epochs"] == 0,
        ),
    )


def forms(name: str) -> dict[str, dict[str, Any]]:
    """US and S, those that a method has, and the options that make it so."""
    from advprune.method import get

    granularity = get(name).model_fields.get("granularity")
    offered = get_args(granularity.annotation) if granularity else ()
    channels = next((one for one in ("filter", "channel") if one in offered), None)
    found: dict[str, dict[str, Any]] = {}
    if not offered or "weight" in offered:
        found["US"] = {}
    if channels:
        found["S"] = {"options.granularity": channels, **WIDTHS}
    elif "US" not in found:  # kernels
        found["S"] = {}
    return found


def epochs(name: str) -> dict[str, int]:
    """How a method spends the 20 epochs, as its preset does those of the paper."""
    from advprune.method import get
    from pipeline.resolve import method_settings

    paper = method_settings("cifar10", name)
    scratch = paper.get("standard.epochs") == 0 and paper.get("adversarial.epochs") == 0
    left = DENSE + AFTER if scratch else AFTER
    if not get(name)().searches:
        search = 0
    elif paper.get("finetune.epochs") == 0:
        search = left
    else:
        search = TICKET if scratch else SEARCH
    return {
        "adversarial.epochs": DENSE + AFTER - left,
        "prune.epochs": search,
        "finetune.epochs": left - search,
    }


def key(job: Job) -> str:
    """What tells a cell from all others, but for the code that made it."""
    asked = {"settings": job.settings, "sparsity": job.sparsity, "seed": job.seed}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def source(name: str) -> str:
    """The digest of a method's file."""
    from advprune.method import get

    return hashlib.sha256(Path(inspect.getfile(get(name))).read_bytes()).hexdigest()[:16]


def measure(job: Job, runs: Path, autoattack: int) -> Cell:
    """Run one job in this process; a refusal is a result."""
    from advprune.errors import Refused

    started = time.monotonic()
    about = {
        "key": key(job),
        "row": job.row,
        "sparsity": job.sparsity,
        "seed": job.seed,
        "source": source(job.settings["method"]),
    }
    try:
        outcome = outcome_of(job, runs)
        found = evidence(outcome, job, runs, autoattack)
    except Refused as refusal:
        return Cell(job, refused=str(refusal), line={**about, "refused": str(refusal)})
    minutes = round((time.monotonic() - started) / 60, 2)
    line = {**about, **found, "minutes": minutes}
    return Cell(job, found["clean"], found["worst"], found["status"], line=line)


def evidence(outcome: Any, job: Job, runs: Path, autoattack: int) -> dict[str, Any]:
    """Verdicts and distances of the int8 file, shares of both, AutoAttack on so many images."""
    from deploy.packing import pack
    from deploy.verdicts import read

    report = json.loads(outcome.artifacts["report"].read("report.json"))
    engines = {engine["name"]: engine for engine in report["engines"]}
    folder = outcome.artifacts["verify"].check()
    flags = read(folder / "verdicts.int8.json").flags
    curve = json.loads((folder / "verification.json").read_bytes())["curve"]["engines"]["int8"]
    distances = [math.inf if one is None else one for one in curve["distances"]]
    return {
        "images": len(flags["clean"]),
        "clean": engines["int8"]["clean"]["value"],
        "worst": engines["int8"]["worst"]["value"],
        "float_clean": engines["fp32"]["clean"]["value"],
        "float_worst": engines["fp32"]["worst"]["value"],
        "flags": {name: pack(flags[name]) for name in ("clean", "worst")},
        "distances": [round(one, 3) if math.isfinite(one) else None for one in distances],
        "autoattack": attacked(outcome, job, runs, autoattack) if autoattack else None,
        "sparsity_got": report["sparsity"]["got"],
        "download": engines["int8"]["compressed_bytes"],
        "status": report["verdict"]["status"],
    }


def attacked(outcome: Any, job: Job, runs: Path, images: int) -> dict[str, Any]:
    from advprune.data import read
    from advprune.types import Threat
    from pipeline.stages.quantize import INT8

    threat = Threat(**json.loads(outcome.artifacts["report"].read("report.json"))["threat"])
    split = read(outcome.artifacts["data"].check()).test.first(images)
    files = {"int8": outcome.artifacts["export"].path / INT8}
    folder = runs / "autoattack" / key(job)
    found = judge(files, split, threat, job.seed, folder, {"autoattack": "autoattack"})
    assert found is not None  # its time is not limited
    return {"images": len(split), "flags": found["int8"]["autoattack"]["flags"]}


def read_cells(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> line; of two with the same key the later one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {cell["key"]: cell for cell in map(json.loads, lines)}


def write_cells(path: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    from advprune.files import write

    order = sorted(cells.values(), key=lambda c: (c["row"], c["sparsity"], c["seed"]))
    write(path, "".join(json.dumps(cell) + "\n" for cell in order).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    parser.add_argument("--runs", type=Path, default=Path("build/fair"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="measure these alone")
    parser.add_argument("--print", action="store_true", dest="only_print", help="measure nothing")
    options = parser.parse_args()
    cells = read_cells(CELLS)
    todo = jobs(range(options.seeds))
    current = {key(job): source(job.settings["method"]) for job in todo}
    missing = [
        job
        for job in todo
        if cells.get(key(job), {}).get("source") != current[key(job)]
        and job.settings["method"] in (options.only or [job.settings["method"]])
    ]

    def tell(cell: Cell) -> None:
        cells[cell.line["key"]] = dict(cell.line)
        write_cells(CELLS, cells)

    if not options.only_print:
        for seed in range(options.seeds):
            some = [job for job in missing if job.seed == seed]
            images = AUTOATTACK_IMAGES if seed == 0 else 0
            run(
                some,
                options.runs,
                options.workers,
                functools.partial(measure, autoattack=images),
                tell,
            )
    text = render([cell for cell in cells.values() if cell["key"] in current], current)
    write_section("fair", text)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
