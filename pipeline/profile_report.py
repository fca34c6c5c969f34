"""What a profile says: a document, a page, a table on the screen, and traces to open."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from advprune.files import write
from advprune.peak import Peak, measure
from advprune.spans import OTHER
from pipeline.files import make_folder, storage_errors, write_json
from pipeline.profile import PROFILING, TRAINING, Profile, StageProfile

FOLDER = "profile"
CACHED = "cached: nothing to time; use another --runs folder"
_SHOWN = 3  # spans of a stage, in the table


def write_profile(profile: Profile, stages: Iterable[str], run: Path) -> dict[str, Any]:
    """Write RUN/profile anew: profile.json, profile.md and STAGE.trace.json.gz.

    The peak of the device is measured here, where something was trained.

    Args:
        stages: all of the run; those that the profile lacks were cached.

    Returns:
        The content of profile.json.
    """
    trained = any(stage.operations for stage in profile.stages.values())
    peak = measure(profile.device) if trained else None
    document = {
        "schema": 1,
        "device": profile.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak": vars(peak) if peak else None,
        "stages": [_stage(name, profile.stages.get(name), peak) for name in stages],
    }
    folder = run / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    with storage_errors(folder):
        for name, stage in profile.stages.items():
            if stage.trace:
                write(folder / _trace(name), stage.trace)
        write(folder / "profile.md", to_markdown(document).encode())
        write_json(folder / "profile.json", document)
    return document


def _trace(stage: str) -> str:
    return f"{stage}.trace.json.gz"


def _stage(name: str, stage: StageProfile | None, peak: Peak | None) -> dict[str, Any]:
    if stage is None:
        return {"name": name, "cached": True}
    seconds = sum(stage.seconds.values())
    ordered = sorted(stage.seconds.items(), key=lambda entry: -entry[1])
    return {
        "name": name,
        "cached": False,
        "seconds": seconds,
        "spans": {span: {"seconds": s, "share": s / seconds} for span, s in ordered},
        "memory_bytes": stage.memory,
        "training": _training(stage, peak) if peak and stage.operations else None,
        "trace": _trace(name) if stage.trace else None,
    }


def _training(stage: StageProfile, peak: Peak) -> dict[str, Any]:
    operations = sum(stage.operations.values())
    return {
        "steps": stage.steps,
        "operations": stage.operations,
        "seconds": stage.training,
        "operations_per_second": operations / stage.training,
        "share_of_peak": peak.seconds(stage.operations) / stage.training,
    }


_HEAD = ("stage", "seconds", "where the time went", "GFLOP/s", "of the peak", "memory")


def _rows(document: dict[str, Any], spans: int | None) -> list[tuple[str, ...]]:
    """One row for each stage, with so many of its spans."""
    rows = []
    for stage in document["stages"]:
        if stage["cached"]:
            rows.append((stage["name"], "", CACHED, "", "", ""))
            continue
        shown = [
            f"{name} {100 * found['share']:.0f} %"
            for name, found in list(stage["spans"].items())[:spans]
            if found["share"] >= 0.005
        ]
        rate, share = "", ""
        if stage["training"]:
            rate = f"{stage['training']['operations_per_second'] / 1e9:,.1f}"
            share = f"{100 * stage['training']['share_of_peak']:.1f} %"
        memory = f"{stage['memory_bytes'] / 1e6:,.0f} MB"
        seconds = f"{stage['seconds']:.1f}"
        rows.append((stage["name"], seconds, ", ".join(shown), rate, share, memory))
    return rows


def hints(document: dict[str, Any]) -> list[str]:
    """The peak that shares refer to, and where most of the time went."""
    lines = []
    if peak := document["peak"]:
        lines.append(
            f"peak of {document['device']}, {document['threads']} threads: fp32 "
            f"{peak['fp32'] / 1e9:,.0f} and bf16 {peak['bf16'] / 1e9:,.0f} GFLOP/s in a matrix "
            f"product, {peak['copy'] / 1e9:,.1f} GB/s in a copy"
        )
    if ran := [stage for stage in document["stages"] if not stage["cached"]]:
        total = sum(stage["seconds"] for stage in ran)
        slowest = max(ran, key=lambda stage: stage["seconds"])
        share = 100 * slowest["seconds"] / total
        line = (
            f"most of the time: {slowest['name']}, {slowest['seconds']:.1f} of {total:.1f} s "
            f"({share:.0f} %)"
        )
        named = [name for name in slowest["spans"] if name not in (OTHER, PROFILING)]
        if named:
            line += f", first of all {named[0]}, {slowest['spans'][named[0]]['seconds']:.1f} s"
        if slowest["trace"]:
            line += f"; open {slowest['trace']} in ui.perfetto.dev"
        lines.append(line)
    return lines


def to_markdown(document: dict[str, Any]) -> str:
    """The page: a line per stage with all its spans."""
    lines = ["# Where the time went", ""]
    lines += [f"| {' | '.join(_HEAD)} |", "|---|--:|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(document, None)]
    lines += ["", *(f"- {hint}" for hint in hints(document)), ""]
    lines.append(
        f"GFLOP/s and the share of the peak are those of training steps: {', '.join(TRAINING)}."
    )
    return "\n".join(lines) + "\n"


def show(document: dict[str, Any], console: Console) -> None:
    """The table on the screen, and the hints under it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, head in enumerate(_HEAD):
        table.add_column(head, justify="left" if index in (0, 2) else "right")
    for row in _rows(document, _SHOWN):
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    for line in hints(document):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
