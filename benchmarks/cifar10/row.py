"""One row of docs/results-cifar10.md, for as many seconds as there are; the same command goes on.

    .venv/bin/python benchmarks/cifar10/row.py harp-99 --data folder:PATH --seconds 450
    .venv/bin/python benchmarks/cifar10/row.py harp-99 --data folder:PATH --rehearse     # on a CPU

Exit 0: the row is complete and lies in OUT/NAME.json. Exit 143: time was over; what is done is in
RUNS, which `parcel.py` packs for another machine. Rows of the same seed share what they can.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from advprune.data import read
from advprune.errors import Refused
from advprune.files import write
from advprune.repro import environment
from pipeline.devices import resolve_device
from pipeline.resolve import flatten, resolve
from pipeline.run import Outcome, execute
from pipeline.screen import Screen
from pipeline.stages.export import engines_of
from pipeline.stages.quantize import INT8
from pipeline.stopping import Terminated

sys.path.insert(0, str(Path(__file__).parents[1]))
from judge import MEASURES, judge

ROWS = Path(__file__).parent / "rows.toml"
OUT = Path("build/cifar10")
CHECKPOINT_STEPS = 200
_PASSED_JUDGEMENT = (0, 10, 11)  # exit codes of a gate
# In a rehearsal all of AutoAttack's parts run, none for long.
SHORT = {"clean": "", "pgd10": "pgd:steps=10", "autoattack": "autoattack:steps=3,queries=20"}


def main() -> None:
    rows = read_rows()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=list(rows["rows"]))
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="then stop, with a checkpoint")
    parser.add_argument("--rehearse", action="store_true", help="tiny settings, to try the way")
    options = parser.parse_args()
    try:
        complete = piece(
            options.name,
            rows,
            data=options.data,
            runs=options.runs,
            out=options.out,
            seed=options.seed,
            seconds=options.seconds,
            rehearse=options.rehearse,
        )
    except Refused as refusal:
        sys.stderr.write(f"{refusal}\n")
        sys.exit(refusal.exit_code)
    sys.exit(0 if complete else Terminated.exit_code)


def read_rows() -> dict[str, Any]:
    return tomllib.loads(ROWS.read_text())


def piece(
    name: str,
    rows: Mapping[str, Any],
    *,
    data: str,
    runs: Path,
    out: Path,
    seed: int,
    seconds: float | None,
    rehearse: bool,
) -> bool:
    """Work on a row until it is complete, True, or until the time is over, False."""
    row, started = rows["rows"][name], time.monotonic()
    layers = [rows["common"], row["settings"]]
    layers += [rows["rehearsal"], row.get("rehearsal", {})] if rehearse else []
    settings = {key: value for layer in layers for key, value in flatten(layer).items()}
    recipe, sources = resolve({**settings, "data": data, "seed": seed}, environment={})
    label = f"{name}-seed{seed}{'-rehearsal' if rehearse else ''}"
    log = runs / "rows" / f"{label}.jsonl"

    def over() -> bool:
        return seconds is not None and time.monotonic() - started > seconds

    def note(what: str) -> None:
        entry = {"seconds": round(time.monotonic() - started, 1), "ended": what}
        before = log.read_bytes() if log.is_file() else b""
        log.parent.mkdir(parents=True, exist_ok=True)
        write(log, before + json.dumps(entry).encode() + b"\n")

    alarm = threading.Timer(seconds or 0, os.kill, [os.getpid(), signal.SIGTERM])
    alarm.daemon = True
    try:
        if seconds is not None:
            alarm.start()
        outcome = execute(
            recipe, sources, runs, Screen(Console()), checkpoint_steps=CHECKPOINT_STEPS
        )
    except Terminated:
        note("in the pipeline")
        return False
    finally:
        alarm.cancel()
    images = read(outcome.artifacts["data"].check()).to(resolve_device(recipe.device))
    exported = outcome.artifacts["export"]
    files = {"fp32": engines_of(exported.check())["fp32"], "int8": exported.path / INT8}
    found = judge(
        files,
        images.test,
        recipe.threat(),
        recipe.seed,
        runs / "rows" / label,
        SHORT if rehearse else MEASURES,
        over=over,
    )
    note("complete" if found else "in its verification")
    if found is None:
        return False
    result = {
        "schema": 1,
        "row": name,
        "title": row["title"],
        "rehearsal": rehearse,
        "published": row.get("published"),
        "images": len(images.test),
        "data": images.digest,
        "threat": recipe.threat().to_dict(),
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(resolve_device(recipe.device)),
        "engines": found,
        "pipeline": _of_pipeline(outcome),
        "pieces": [json.loads(line) for line in log.read_text().splitlines()],
    }
    out.mkdir(parents=True, exist_ok=True)
    write(out / f"{label}.json", json.dumps(result, indent=1).encode() + b"\n")
    return True


def _of_pipeline(outcome: Outcome) -> dict[str, Any]:
    """What the run itself found: its verdict, the realised sparsity, sizes and latency."""
    report = json.loads(outcome.artifacts["report"].read("report.json"))
    engines = ("name", "clean", "worst", "bytes", "compressed_bytes", "latency")
    return {
        "verdict": report["verdict"]["status"],
        "sparsity": report["sparsity"]["got"],
        "quantisation": outcome.artifacts["quantize"].metrics["quantisation"],
        "engines": [{key: engine[key] for key in engines} for engine in report["engines"]],
    }


if __name__ == "__main__":
    main()
