"""`advprune doctor`: what this machine has, what it lacks, and how to get that."""

import importlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console

SMALLEST_DISK = 2_000_000_000  # bytes; an ImageNet-sized run wants more


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A `missing` one blocks the pipeline, an `absent` one does not."""

    name: str
    status: Literal["ok", "absent", "missing"]
    found: str
    remedy: str = ""


def doctor(runs: Path, as_json: bool) -> int:
    findings = [*_packages(), *_devices(), _providers(), _openvino(), _tensorrt(), _disk(runs)]
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        console = Console()
        signs = {"ok": "✓", "absent": "·", "missing": "✗"}
        for finding in findings:
            line = f" {signs[finding.status]} {finding.name:<14} {finding.found}"
            if finding.remedy:
                line += f"\n   → {finding.remedy}"
            console.print(line, highlight=False, markup=False)
    return 69 if any(finding.status == "missing" for finding in findings) else 0


def _packages() -> list[Finding]:
    findings = []
    for name in ("torch", "torchvision", "torchattacks", "onnx", "onnxruntime", "typer"):
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "missing", "not installed", "make setup"))
    return findings


def _devices() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    cpu = Finding("cpu", "ok", f"{cores} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        remedy = "an NVIDIA GPU and its driver speed training up; everything runs without"
        return [cpu, Finding("cuda", "absent", "no device", remedy)]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [cpu, Finding("cuda", "ok", ", ".join(names))]


def _providers() -> Finding:
    import onnxruntime

    return Finding("onnxruntime on", "ok", ", ".join(onnxruntime.get_available_providers()))


def _openvino() -> Finding:
    try:
        return Finding("openvino", "ok", version("openvino"))
    except PackageNotFoundError:
        remedy = "pip install 'openvino>=2026.4'; another engine for the CPU, `bench` can time it"
        return Finding("openvino", "absent", "not installed", remedy)


def _tensorrt() -> Finding:
    remedy = "pip install 'tensorrt>=10.3' on a machine with an NVIDIA GPU; engines are skipped"
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        return Finding("tensorrt", "absent", f"cannot be imported ({error})", remedy)
    return Finding("tensorrt", "ok", module.__version__)


def _disk(runs: Path) -> Finding:
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free < SMALLEST_DISK:
        return Finding("disk", "missing", found, "make room, or choose another disk with --runs")
    return Finding("disk", "ok", found)
