"""Reports and verdicts of imaginary runs, and runs on disk that differ from a real one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import Tiny
from verdict_files import example

from deploy.board_rows import measured
from deploy.report import SCHEMA
from deploy.sealed import seal, unseal
from deploy.statistics import share
from deploy.verdicts import Verdicts
from pipeline.files import sha256

N = 400


def verdicts(
    worst: int = 320, precision: str = "int8", sha: str = "a", **protocol: Any
) -> Verdicts:
    """400 images of which the first 390 are right clean, and the first `worst` under attack."""
    return example(worst, sha=sha, precision=precision, **protocol)


def engine(name: str, worst: int, p50_ms: float, compressed: int) -> dict[str, Any]:
    def first(count: int) -> dict[str, float]:
        return share([i < count for i in range(N)])

    return {
        "name": name,
        "file": f"model.{name}.onnx",
        "precision": name,
        "clean": first(390),
        "worst": first(min(worst, 350)),
        "attacks": {"pgd-ce@finetuned": first(350), "square": first(worst)},
        "latency": {
            "runtime": "onnxruntime",
            "version": "1.31.1",
            "device": "cpu",
            "threads": 1,
            "p50_ms": p50_ms,
            "p90_ms": 1.1 * p50_ms,
            "p99_ms": 1.5 * p50_ms,
            "throughput": 9000.0,
            "throughput_batch": 128,
        },
        "bytes": 5 * compressed,
        "compressed_bytes": compressed,
    }


def report(
    worst: int = 320, p50_ms: float = 0.08, compressed: int = 20_000, **recipe: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": "harp",
        "model": "digits_resnet",
        "data": "digits",
        "sparsity": 0.9,
        "seed": 0,
        "eps": 0.15,
        "norm": "linf",
        "options": {},
        "threads": 1,
        "verify": {"suite": "standard", "split": "test", "images": None},
    } | recipe
    layers = [
        {"name": f"layer{i}.weight", "kept": 10 + i, "total": 100 * (i + 1)} for i in range(3)
    ]
    grid = [0.03 * step for step in range(11)]
    line = {"accuracy": [1 - step / 10 for step in range(11)]}
    line |= {key: line["accuracy"] for key in ("low", "high")}
    return {
        "schema": SCHEMA,
        "title": f"{settings['method']} · seed {settings['seed']}",
        "verdict": {"status": "PASS", "lines": ["held"]},
        "recipe": settings,
        "environment": {"machine": "x86_64", "cores": 2, "torch": "2.15.0"},
        "structure": None,
        "sparsity": {"asked": 0.9, "got": 0.9004, "kept": 33, "total": 600, "layers": layers},
        "engines": [
            engine("fp32", worst, 2 * p50_ms, 4 * compressed),
            engine("int8", worst, p50_ms, compressed),
        ],
        "health": [{"id": "H1", "what": "x", "value": 0.0, "status": "OK"}],
        "threat": {"norm": settings["norm"], "eps": settings["eps"], "low": 0.0, "high": 1.0},
        "images": N,
        "curve": {"norm": settings["norm"], "eps": grid, "engines": {"fp32": line, "int8": line}},
    }


def row(run: str, worst: int = 320, protocol: dict[str, Any] | None = None, **of: Any) -> dict:
    """A row of a board, for a run of that name."""
    facts = {"run": run, "date": "2026-01-31", "when": "after"}
    return measured(report(worst, **of), verdicts(worst, **(protocol or {})), facts)


def derived(
    tiny: Tiny,
    folder: Path,
    report: Callable[[dict[str, Any]], object] | None = None,
    verify: Callable[[dict[str, Any]], object] | None = None,
    data: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """A finished run like the small one, but for what is changed in these stages.

    Args:
        report: changes the content of report.json.
        verify: changes the content of the int8 engine's verdicts.
        data: changes the manifest of the data.
    """
    folder.mkdir(parents=True)
    shutil.copy(tiny.run / "recipe.toml", folder)
    changes = {"report": ("report.json", report), "verify": ("verdicts.int8.json", verify)}
    for entry in sorted(tiny.run.glob("[0-9]*_*")):
        stage = entry.name.partition("_")[2]
        name, change = changes.get(stage, (None, data if stage == "data" else None))
        if change is None:
            (folder / entry.name).symlink_to(entry.resolve())
            continue
        own = folder.parent / f".{folder.name}-{stage}"
        shutil.copytree(entry.resolve(), own)
        manifest = unseal((own / "manifest.json").read_bytes())
        if name is None:
            change(manifest)
        else:
            sealed = name.startswith("verdicts")
            read = (own / name).read_bytes()
            content = unseal(read) if sealed else json.loads(read)
            change(content)
            (own / name).write_bytes(seal(content) if sealed else json.dumps(content).encode())
            manifest["files"][name]["sha256"] = sha256(own / name)
        (own / "manifest.json").write_bytes(seal(manifest))
        (folder / entry.name).symlink_to(own)
    return folder
