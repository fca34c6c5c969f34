"""`advprune bench`: what each exported form costs and what it is worth, side by side."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advprune.errors import Refused
from deploy.bench import interleaved, sizes
from deploy.files import demand_writable, write_atomic
from deploy.footprint import footprint
from deploy.outcome import percent
from deploy.runtime import EdgeModel, load, runtime_for
from deploy.single_stream import single_stream
from deploy.statistics import share
from deploy.verdicts import read, verdict_file
from deploy.words import interval, number, size
from export.check import operator_counts
from pipeline.commands.results import context_of
from pipeline.files import sha256
from pipeline.stage import Artifact
from pipeline.stages.verify import CALLS, WARMUP_S, files_to_time, pixels_to_time

# Operators that do the arithmetic of a network, as any of the runtimes name them.
_KERNELS = ("Conv", "Gemm", "MatMul", "FullyConnected")
_STREAM = "single stream p90"


def bench(
    run: Path,
    runtime: str | None,
    threads: int,
    stream_s: float | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure the engines of a run in one runtime; None is the default of each file."""
    if stream_s is not None and not math.isfinite(stream_s):
        raise Refused(f"--single-stream {stream_s}: must be a number of seconds that ends")
    if out is not None:
        demand_writable(out)
    context = context_of(run)
    images = pixels_to_time(context)
    with files_to_time(context, runtime) as files:
        models = {name: load(file, threads, runtime) for name, file in files.items()}
        operators = {name: _operators(models[name], file) for name, file in files.items()}
        timed = interleaved(models, images, warmup_s=WARMUP_S, calls=CALLS, operators=operators)
        rows = {
            name: {
                **asdict(timed[name]),
                **asdict(footprint(file, runtime, threads)),
                **sizes(file),
                **_accuracy(context["verify"], name, file, runtime),
                "file": file.name,
                "sha256": models[name].info.sha256,
            }
            for name, file in files.items()
        }
    if stream_s is not None:
        for name, model in models.items():
            found = single_stream(model, images, seconds=stream_s, warmup_s=WARMUP_S)
            rows[name]["single_stream"] = asdict(found)
    document = json.dumps(rows)
    if out is not None:
        write_atomic(out, f"{document}\n".encode())
    if as_json:
        sys.stdout.write(document + "\n")
    else:
        _show(rows, Console())
    return 0


def _operators(model: EdgeModel, file: Path) -> dict[str, int]:
    """What the engine really runs; nothing where its runtime does not say."""
    match model.info.runtime, model.info.device:
        case "onnxruntime", "cpu":
            return operator_counts(file)
        case "openvino", _:
            from deploy.runtimes.openvino import OpenVinoModel

            assert isinstance(model, OpenVinoModel)
            return model.primitives()
    return {}


def _accuracy(
    verification: Artifact, engine: str, file: Path, runtime: str | None
) -> dict[str, dict[str, float] | None]:
    """Clean and worst-case accuracy, with intervals, of this file in this runtime.

    Engines round differently, and images near the boundary then fall elsewhere; so what was
    measured in one runtime is not said of another, nor of another file of the same name.
    """
    name = verdict_file(engine)
    if runtime_for(file, runtime) == runtime_for(file, None) and (
        name in verification.manifest["files"]
    ):
        verdicts = read(verification.file(name))
        if verdicts.artefact["sha256"] == sha256(file):
            return {key: share(verdicts.flags[key]) for key in ("clean", "worst")}
    return {"clean": None, "worst": None}


def _show(rows: Mapping[str, dict[str, Any]], console: Console) -> None:
    """One column for each engine, so that any number of facts fits the width of a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(style="dim", no_wrap=True)
    for engine in rows:
        table.add_column(Text(engine), justify="right")
    for label, cell in _FACTS.items():
        cells = [cell(row) for row in rows.values()]
        if label != _STREAM or any(cells):
            table.add_row(label, *(Text(text or "–") for text in cells))
    console.print(table)
    first = next(iter(rows.values()))
    note = (
        f"{len(first['samples_ms'])} calls of one image, engine by engine in turn; images/s in "
        f"batches of {first['throughput_batch']}; memory of a process of its own, Python included; "
        f"load average {first['load_average']:.1f}"
    )
    console.print(Text(note, style="dim"))


def _robust(row: dict[str, Any]) -> str:
    worst = row["worst"]
    return f"{percent(worst['value'])} {interval(worst)}" if worst else ""


def _kernels(row: dict[str, Any]) -> str:
    counts = row["operators"].items()
    kernels = [f"{n} {kind}" for kind, n in counts if any(word in kind for word in _KERNELS)]
    return ", ".join(kernels)


def _stream(row: dict[str, Any]) -> str:
    stream = row.get("single_stream")
    return f"{stream['p90_estimate_ms']:.3f}" if stream else ""


_FACTS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "file": lambda row: row["file"],
    "size": lambda row: size(row["bytes"]),
    "download": lambda row: size(row["compressed_bytes"]),
    "clean": lambda row: percent(row["clean"]["value"]) if row["clean"] else "",
    "worst case [95 %]": _robust,
    "p50 ms": lambda row: f"{row['p50_ms']:.3f}",
    "p90 ms": lambda row: f"{row['p90_ms']:.3f}",
    "p99 ms": lambda row: f"{row['p99_ms']:.3f}",
    _STREAM: _stream,
    "images/s": lambda row: number(row["throughput"]),
    "load ms": lambda row: number(row["load_ms"]),
    "peak memory": lambda row: size(row["peak_memory"]),
    "kernels": _kernels,
    "runtime": lambda row: f"{row['runtime']} {row['version']}",
    "provider": lambda row: ", ".join(row["providers"]).replace("ExecutionProvider", ""),
    "threads": lambda row: str(row["threads"]),
}
