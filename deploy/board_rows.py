"""The rows of a board: one for each measured run, and those that others have published."""

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy import shape
from deploy.errors import DeployError
from deploy.report import check_schema
from deploy.verdicts import Verdicts, canonical

PUBLISHED = Path(__file__).parent / "published.csv"
_SHIPS, _FLOAT = "int8", "fp32"
# Two runs that differ in these settings alone are two tries of one.
_NOT_SETTINGS = ("seed", "device", "threads", "gate", "data_dir")
_AUTOATTACK = "autoattack"


def measured(report: Mapping[str, Any], verdicts: Verdicts, facts: Mapping[str, Any]) -> dict:
    """What a board says of one run.

    Args:
        report: the content of its report.json.
        verdicts: of the engine that ships.
        facts: "run" and "date", and "when": before, after or during training, None where unknown.

    Raises:
        DeployError: 65, the report is older or is none.
    """
    check_schema(report, "its report")
    try:
        row = {**facts, **_row(report, verdicts)}
        shape.check(row, _ROW)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else f"is off: {error}"
        raise DeployError(f"its report {said}; run the pipeline again", 65) from error
    return row


def _row(report: Mapping[str, Any], verdicts: Verdicts) -> dict[str, Any]:
    recipe, engines = report["recipe"], {engine["name"]: engine for engine in report["engines"]}
    ships, speed = engines[_SHIPS], engines[_SHIPS]["latency"]
    checking = recipe["verify"]
    listed = (share for name, share in ships["attacks"].items() if name.startswith(_AUTOATTACK))
    return {
        "source": "measured",
        "method": recipe["method"],
        "network": recipe["model"],
        "data": recipe["data"],
        "structure": _structure(report),
        "asked": report["sparsity"]["asked"],
        "sparsity": report["sparsity"]["got"],
        "clean": ships["clean"],
        "worst": ships["worst"],
        "float_worst": engines[_FLOAT]["worst"] if _FLOAT in engines else None,
        "autoattack": next(listed, None),
        "ho_fmn": None,
        "p50_ms": speed["p50_ms"],
        "place": place(speed, report["environment"]),
        "bytes": ships["bytes"],
        "compressed_bytes": ships["compressed_bytes"],
        "verdict": report["verdict"]["status"],
        "valid": all(check["status"] != "INVALID" for check in report["health"]),
        "seed": recipe["seed"],
        "eps": report["threat"]["eps"],
        "norm": report["threat"]["norm"],
        "suite": checking["suite"],
        "split": checking["split"],
        "images": report["images"],
        "attacks": len(ships["attacks"]),
        "protocol": _protocol(verdicts, checking["split"]),
        "setting": _digest({k: v for k, v in recipe.items() if k not in _NOT_SETTINGS}),
    }


def add_benchmark(row: dict[str, Any], result: Mapping[str, Any], digest: str) -> None:
    """Take the benchmark's own numbers into a row, from what `advprune attack` wrote.

    Args:
        digest: of the file that ships: numbers of any other have no place in its row.

    Raises:
        DeployError: 65, they are not of that file, or none.
    """
    try:
        if result["target"]["sha256"] != digest:
            raise DeployError("its numbers are of another file than the run's int8 engine", 65)
        found = result["apb"]
        fmn = found["ho_fmn"]
        numbers = {"autoattack": found["autoattack"], "ho_fmn": fmn and fmn["robust"]}
        shape.check(row | numbers, _ROW)
    except (KeyError, TypeError, ValueError) as error:
        raise DeployError(
            f"no result of `advprune attack --protocol apb` ({error!r})", 65
        ) from error
    row |= numbers


def published() -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of published.csv, and what its first lines say of them."""
    lines = PUBLISHED.read_text().splitlines()
    notes = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    rows = [
        {
            "source": "published",
            **{key: row[key] for key in ("method", "network", "data", "structure", "when")},
            **{key: float(row[key]) for key in ("sparsity", "clean", "autoattack")},
        }
        for row in table
    ]
    return rows, notes


def _structure(report: Mapping[str, Any]) -> str:
    """The benchmark's letters, and what goes as one where that is more than a weight."""
    unit = report["recipe"]["options"].get("granularity", "weight")
    if report["structure"] is not None:
        return "S" if unit == "weight" else f"S {unit}"
    return "US" if unit == "weight" else str(unit)


def place(speed: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Where a latency was measured: only such of one place can be compared."""
    threads = f"{speed['threads']} thread{'' if speed['threads'] == 1 else 's'}"
    machine = environment.get(
        "device_name", f"{environment['machine']}, {environment['cores']} cores"
    )
    return f"{speed['runtime']} {speed['version']} {speed['device']}, {threads}; {machine}"


def _protocol(verdicts: Verdicts, split: str) -> str:
    """Equal where accuracies may be ranked: same images, labels, threat, attacks and input.

    Not the seed of the attacks: it is the run's own, and another one asks the same question.
    """
    settings = {key: value for key, value in verdicts.protocol.items() if key != "seed"}
    return _digest({**settings, "split": split})


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()[:12]


_WORDS = shape.Is("text", lambda x: isinstance(x, str))
_FRACTION = shape.Is("a share", lambda x: shape.is_number(x) and 0 <= x <= 1)
_POSITIVE = shape.Is("a positive number", lambda x: shape.is_number(x) and x > 0)
_SHARE = {"value": _FRACTION, "low": _FRACTION, "high": _FRACTION}
_ROW: dict[str, Any] = {
    **dict.fromkeys(("source", "run", "date", "method", "network", "data", "structure"), _WORDS),
    **dict.fromkeys(("place", "norm", "suite", "split", "protocol", "setting"), _WORDS),
    **dict.fromkeys(("asked", "sparsity"), _FRACTION),
    **dict.fromkeys(("clean", "worst"), _SHARE),
    **dict.fromkeys(("float_worst", "autoattack", "ho_fmn"), shape.OrNull(_SHARE)),
    **dict.fromkeys(("bytes", "compressed_bytes", "images"), shape.COUNT),
    "when": shape.OrNull(_WORDS),
    "p50_ms": _POSITIVE,
    "verdict": shape.Is("a verdict", lambda x: x in ("PASS", "FAIL", "INCONCLUSIVE")),
    "valid": shape.Is("true or false", lambda x: isinstance(x, bool)),
    "seed": shape.INTEGER,
    "eps": shape.NUMBER,
    "attacks": shape.INTEGER,
}
