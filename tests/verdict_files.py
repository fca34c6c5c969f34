"""Verdicts of two imaginary engines on 400 images, for tests of the gate."""

from typing import Any

from deploy.verdicts import Verdicts

N = 400
PGD = {"name": "pgd-ce@finetuned", "steps": 20}
SQUARE = {"name": "square", "queries": 9}


def example(
    worst: int = 320,
    sha: str = "a",
    precision: str = "int8",
    measured: dict[str, Any] | None = None,
    health: dict[str, Any] | None = None,
    **protocol: Any,
) -> Verdicts:
    """400 images: 390 right clean, the first `worst` of them right under the second attack."""
    return Verdicts(
        protocol={
            "data": "d" * 64,
            "images": "e" * 64,
            "labels": "f" * 64,
            "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
            "attacks": [dict(PGD), dict(SQUARE)],
            "seed": 0,
            "input": "float32 NCHW [0,1]",
        }
        | protocol,
        artefact={"file": f"model.{precision}.onnx", "sha256": sha * 64, "precision": precision},
        correct={
            "clean": [i < 390 for i in range(N)],
            "pgd-ce@finetuned": [i < 350 for i in range(N)],
            "square": [i < worst for i in range(N)],
        },
        measured=measured,
        health=health,
    )


def costs(**changes: Any) -> dict[str, Any]:
    """What an engine costs: 100 kB, four fifths of the time of its float engine."""
    return {
        "bytes": 100_000,
        "compressed_bytes": 20_000,
        "p50_ms": 0.08,
        "p99_ms": 0.2,
        "float_p50_ms": 0.1,
        "where": "onnxruntime 1.31.1 cpu, 1 thread",
    } | changes


def health(*invalid: str, suspect: tuple[str, ...] = ()) -> dict[str, Any]:
    """What was found of an evaluation by 42 checks."""
    return {"checks": 42, "invalid": [*invalid], "suspect": [*suspect]}
