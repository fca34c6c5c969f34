"""A report as the pipeline makes it, written by hand, and the images of its gallery."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.report_page import render_html

ATTACKS = ("pgd-ce@finetuned", "pgd-dlr@finetuned", "pgd-ce@int8-twin", "square")


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.034, "high": min(1.0, value + 0.028)}


def engine(name: str, clean: float, worst: float, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "file": f"model.{name}.onnx",
        "precision": name,
        "clean": share(clean),
        "worst": share(worst),
        "attacks": {attack: share(worst + 0.01 * i) for i, attack in enumerate(ATTACKS)},
        "latency": {
            "runtime": "onnxruntime",
            "threads": 1,
            "p50_ms": 0.281,
            "p90_ms": 0.304,
            "p99_ms": 0.412,
            "throughput": 35120.0,
            "throughput_batch": 128,
        },
        "bytes": size,
        "compressed_bytes": size // 9,
    }


def curve() -> dict[str, Any]:
    """Falls from 98 % to nothing at twice the eps."""
    grid = [0.03 * step for step in range(11)]
    shares = [0.98 * (1 - step / 10) for step in range(11)]
    line = {
        "accuracy": shares,
        "low": [max(share - 0.07, 0.0) for share in shares],
        "high": [min(share + 0.07, 1.0) for share in shares],
    }
    return {"norm": "linf", "eps": grid, "engines": {"fp32": line, "int8": line}}


def item(why: str, index: int, attack: str | None, clean: str, attacked: str) -> dict[str, Any]:
    """One of the gallery, a 3; `clean` and `attacked` are what the two engines say, a sign each."""
    return {
        "why": why,
        "index": index,
        "label": "3",
        "attack": attack,
        "distance": 0.15 if attack else 0.0,
        "clean": [*clean],
        "attacked": [*attacked],
    }


def gallery() -> dict[str, Any]:
    items = [
        item("clean", 11, None, "38", "38"),
        item("int8", 12, "square", "33", "38"),
        item("broken", 12, "pgd-ce@finetuned", "33", "58"),
    ]
    counts = {"clean": 1, "int8": 4, "float": 2, "class": 9, "flipped": 12, "broken": 33}
    return {"engines": ["fp32", "int8"], "counts": counts, "items": items}


def images(count: int, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[NDArray, NDArray]:
    """Noise, and what an attack of eps 0.15 could make of it."""
    draws = np.random.default_rng(0)
    clean = draws.integers(0, 256, (count, *shape), dtype=np.uint8)
    added = draws.choice([-0.15, 0.15], clean.shape)
    return clean, np.clip(clean / 255 + added, 0, 1).astype(np.float32)


def page(report: dict[str, Any]) -> str:
    """The page of a report whose images are noise."""
    return render_html(report, *images(len(report.get("gallery", gallery())["items"])))


def example() -> dict[str, Any]:
    names = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1) for k in (1, 2))]
    layers = [
        {"name": f"network.{name}.weight", "kept": 160 + 37 * i, "total": 1440 * (i + 1)}
        for i, name in enumerate(names)
    ]
    kept, total = sum(x["kept"] for x in layers), sum(x["total"] for x in layers)
    return {
        "schema": 2,
        "title": "harp · 99 % removed (100×) · digits_resnet · digits · cpu · seed 0",
        "verdict": {
            "status": "PASS",
            "lines": [
                "worst against baseline: 88.9 % → 88.3 % of 360 images, 3 worse, 1 better: "
                "drop 0.6 pp ≤ 1.0 pp",
                "the smallest drop that this test finds in four of five cases: 2.1 pp",
            ],
        },
        "command": "advprune run --method harp --sparsity 0.99 --seed 0",
        "recipe": {
            "data": {"name": "digits", "augment": "none"},
            "prune": {"method": "harp", "sparsity": 0.99, "epochs": 12},
            "threat": {"eps": 0.15},
            "attacks": ["pgd-ce", "square"],
            "quantize": {"enabled": True, "calibration": None},
        },
        "environment": {"python": "3.11.7", "torch": "2.15.0", "threads": 2, "device": "cpu"},
        "stages": [
            {"name": "standard", "status": "cached", "seconds": 0.0, "metrics": {"clean": 0.986}},
            {
                "name": "adversarial",
                "status": "ran",
                "seconds": 81.4,
                "metrics": {"clean": 0.982, "robust": 0.918},
            },
            {
                "name": "prune",
                "status": "ran",
                "seconds": 12.31,
                "metrics": {"method": "harp", "kept": 1234.0},
            },
        ],
        "sparsity": {"asked": 0.99, "got": 1 - kept / total, "kept": kept, "total": total}
        | {"layers": layers},
        "engines": [engine("fp32", 0.979, 0.89, 226_000), engine("int8", 0.977, 0.885, 61_000)],
        "transfer": {
            "sources": ["adversarial", "finetuned", "int8-twin"],
            "targets": ["fp32", "int8"],
            "accuracy": [[0.913, 0.907], [0.79, 0.801], [0.81, 0.785]],
        },
        "parity": {
            "argmax_agreement_clean": 1.0,
            "argmax_agreement_adversarial": 0.9972,
            "max_logit_gap": 0.1234,
            "mean_logit_gap": 0.0152,
            "rows_differing": 0.0167,
        },
        "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
        "curve": curve(),
        "health": [
            {"id": "H1", "what": "largest excess over the ball", "value": 0.0, "status": "OK"},
            {"id": "H15", "what": "int8: below Square", "value": 0.0123, "status": "SUSPECT"},
        ],
        "images": 360,
        "gallery": gallery(),
        "caveats": [
            "Toy data: 8×8 digits say whether the pipeline works, not how good a method is."
        ],
        "notes": ["8 bits by calibration alone"],
    }


def structured() -> dict[str, Any]:
    structure = {
        "groups": [
            {"name": "network.conv1.weight", "before": 64, "after": 16},
            {"name": "network.<b>.weight", "before": 128, "after": 64},
        ],
        "parameters": [11_173_962, 701_466],
        "macs": [555_422_720, 34_860_032],
        "logit_gap": 1e-6,
        "latent": {
            "dense": {
                "white": {"accuracy": 0.512, "vulnerability": 0.0413},
                "black": {"accuracy": 0.634, "vulnerability": 0.0387},
            },
            "cut": {
                "white": {"accuracy": 0.498, "vulnerability": 0.0219},
                "black": {"accuracy": 0.601, "vulnerability": 0.0198},
            },
            "left": {"unit_sparsity": 0.583, "memory": 0.0628, "macs": 0.0629},
        },
        "dense": engine("dense", 0, 0, 1)["latency"] | {"p50_ms": 5.62, "throughput": 220.0},
    }
    return example() | {"structure": structure}
