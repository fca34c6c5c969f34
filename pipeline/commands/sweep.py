"""`advprune sweep`: a recipe over a grid, each cell a run, and all of them on one page."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from advprune.errors import Refused
from advprune.files import write
from pipeline.commands.board import board, gather
from pipeline.commands.running import flags_of
from pipeline.files import lock, make_folder, write_json
from pipeline.resolve import setting
from pipeline.stopping import stopping
from pipeline.storage import Storage
from pipeline.store import Store, is_run
from pipeline.sweep.backend import RECIPES, Backend, Terms, backend
from pipeline.sweep.carrying import carry_out
from pipeline.sweep.cell import Ended
from pipeline.sweep.grid import Cell, axes, cells

RECORD = "sweep.json"


@dataclass
class Sweep:
    """Where a sweep stands, written down after every cell.

    Attributes:
        folder: of this grid: its record, and the recipe of each cell.
        rows: by the run of the cell, what is known of it.
    """

    folder: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ended(self, cell: Cell, ended: Ended, attempts: int, seconds: float) -> dict[str, Any]:
        row = {
            **self.rows[cell.run],
            "state": "done" if ended.done else "failed",
            "code": ended.code,
            "attempts": attempts,
            "after_seconds": round(seconds, 1),
        }
        if ended.done:
            engines = {engine["name"]: engine for engine in ended.report["engines"]}
            row["verdict"] = ended.report["verdict"]["status"]
            row["run"] = ended.report["run"]  # on another kind of machine it has another name
            row |= {key: engines["int8"][key]["value"] for key in ("clean", "worst")}
        else:
            row["error"] = ended.error
        self.rows[cell.run] = row
        self.write()
        return row

    def write(self) -> None:
        write_json(self.folder / RECORD, {"cells": list(self.rows.values())})


def sweep(values: dict[str, Any]) -> int:
    """Everything is checked before anything runs; a cell that fails stops no other."""
    workers, retries, runs = values["workers"], values["retries"], values["runs"]
    nproc = values["nproc"]
    if workers < 1 or retries < 0:
        raise Refused(f"--workers {workers} --retries {retries}: at least 1, and at least 0")
    if nproc < 1:
        raise Refused(f"--nproc {nproc}: processes of each run, 1 or more")
    grid = axes(values["grid"], values["seeds"])
    threads = max(1, (os.cpu_count() or 1) // workers // nproc)
    found = cells(grid, flags_of(values), values["recipe"], values["set"], threads)
    storage = Storage(values["storage"]) if values["storage"] else None
    words = ["--runs", str(runs), *(["--storage", values["storage"]] if storage else [])]
    words += ["--nproc", str(nproc)] if nproc > 1 else []
    slurm = dict(_parameter(text) for text in values["slurm"])
    place = runs / "sweeps" / _name(found)
    terms = Terms(place, tuple(words), workers, values["gpus_per_cell"], nproc, slurm)
    engine = backend(values["backend"], terms)
    stream = sys.stderr if values["as_json"] else sys.stdout
    console = Console(file=stream, highlight=False, markup=False)
    dense = len({cell.dense for cell in found})
    console.print(f"{len(found)} cells, {dense} dense networks, on {values['backend']}")
    rows = _carry_out(found, terms, engine, retries, console)
    store = Store(runs, storage)
    for cell, row in zip(found, rows, strict=True):
        elsewhere = row["state"] == "done" and not is_run(runs / row["run"])
        if elsewhere and store.gather(row["run"]):
            write(runs / row["run"] / "recipe.toml", cell.toml.encode())
    failed = [row for row in rows if row["state"] != "done"]
    if len(failed) < len(rows):
        page = runs / "board.html"
        if values["as_json"]:
            gather([runs], page)
        else:
            board([runs], page, opened=False, as_json=False)
    if values["as_json"]:
        sys.stdout.write(json.dumps({"cells": rows}) + "\n")
    for row in failed:
        console.print(f"failed ({row['code']}): {row['title']}: {row['error']}", soft_wrap=True)
    # A process that was killed has no exit code that another may end with.
    return max((row["code"] if row["code"] > 0 else 1 for row in failed), default=0)


def _carry_out(
    found: Sequence[Cell], terms: Terms, engine: Backend, retries: int, console: Console
) -> list[dict[str, Any]]:
    place = terms.folder
    sweep = Sweep(place)
    make_folder(place / RECIPES)
    started = time.monotonic()
    with lock(place / f".{RECORD}.lock", str(place)), stopping(), engine:
        for cell in found:
            sweep.rows[cell.run] = {
                "title": cell.title,
                "chosen": dict(cell.chosen),
                "run": cell.run,
                "recipe": f"{RECIPES}/{cell.run}.toml",
                "state": "waiting",
            }
            write(terms.recipe(cell), cell.toml.encode())
        sweep.write()
        ends = carry_out(found, engine.submit, retries)
        for count, (cell, ended, attempts) in enumerate(ends, start=1):
            row = sweep.ended(cell, ended, attempts, time.monotonic() - started)
            place_of = f"{count}/{len(found)} {row['after_seconds']:8,.0f} s"
            console.print(f"{place_of}  {cell.title}: {_said(row)}", soft_wrap=True)
    return list(sweep.rows.values())


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Refused(f"--slurm {text!r}: expected KEY=VALUE, as partition=gpu")
    return key.strip(), setting(value.strip())


def _said(row: dict[str, Any]) -> str:
    if row["state"] != "done":
        return f"failed ({row['code']}): {row['error']}"
    return f"{row['verdict']}, int8 {100 * row['clean']:.1f} / {100 * row['worst']:.1f} %"


def _name(found: Sequence[Cell]) -> str:
    """The same grid has the same folder, so that its record is carried on."""
    return hashlib.sha256("\n".join(sorted(cell.run for cell in found)).encode()).hexdigest()[:12]
