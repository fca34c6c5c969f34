"""What a bundle says of its models: a bill that CycloneDX takes, a card that people can read."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.bundle.bom import render_bom
from deploy.bundle.card import render_card

DATA = hashlib.sha256(b"images").hexdigest()
SOFTWARE = {"torch": "2.15.0", "onnxruntime": "1.31.1"}


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.04, "high": value + 0.03}


def report(**changes: Any) -> dict[str, Any]:
    engine = {
        "name": "int8",
        "file": "model.int8.x86.onnx",
        "precision": "int8",
        "bytes": 330_000,
        "compressed_bytes": 17_000,
        "clean": share(0.95),
        "worst": share(0.79),
        "attacks": {"pgd|ce": share(0.8), "square": share(0.82)},
        "latency": {"p50_ms": 0.07, "throughput": 38_000.0},
    }
    made: dict[str, Any] = {
        "schema": 2,
        "title": "harp · 99 % removed · digits_resnet · folder:/home/me/faces · cpu · seed 0",
        "verdict": {"status": "PASS", "lines": ["drop 0.1 pp"]},
        "command": "advprune run --recipe /home/me/runs/faces/recipe.toml --runs /home/me/runs",
        "recipe": {
            "data": "folder:/home/me/faces",
            "model": "digits_resnet",
            "method": "harp",
            "sparsity": 0.99,
            "compression": None,
            "objective": "pgd",
            "options": {},
            "seed": 0,
        },
        "environment": {"python": "3.11.7", "torch": "2.15.0"},
        "stages": [],
        "sparsity": {"got": 0.99, "kept": 1, "total": 100, "layers": []},
        "engines": [engine],
        "transfer": {},
        "curve": {},
        "parity": {},
        "health": [
            {"id": "H1", "status": "OK", "what": "all is well"},
            {"id": "H9", "status": "SUSPECT", "what": "still rises"},
            {"id": "H5", "status": "INVALID", "what": "no gradient"},
        ],
        "threat": {"norm": "linf", "eps": 8 / 255, "low": 0.0, "high": 1.0},
        "images": 359,
        "gallery": {},
        "caveats": ["toy data"],
        "notes": [],
    }
    return made | changes


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    files = {"int8": tmp_path / "model.int8.x86.onnx", "fp32": tmp_path / "model.onnx"}
    for name, path in files.items():
        path.write_bytes(name.encode())
    return files


def bill(models: dict[str, Path], **changes: Any) -> dict[str, Any]:
    return json.loads(render_bom("faces", 3, models, report(**changes), DATA, SOFTWARE))


def test_cyclonedx_takes_the_bill(models: dict[str, Path]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    good = bill(models)
    assert validator.validate_str(json.dumps(good)) is None
    wrong = copy.deepcopy(good)
    wrong["components"][0]["hashes"][0]["content"] = "no digest"
    assert validator.validate_str(json.dumps(wrong)) is not None  # so it looks


def test_the_bill_names_every_model_by_its_digest(models: dict[str, Path]) -> None:
    parts = {part["name"]: part for part in bill(models)["components"]}
    for path in models.values():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert parts[path.name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
        assert parts[path.name]["type"] == "machine-learning-model"
    assert parts["folder:faces"]["hashes"][0]["content"] == DATA


def test_metrics_are_of_the_file_that_was_measured(models: dict[str, Path]) -> None:
    parts = {part["name"]: part["modelCard"] for part in bill(models)["components"][:2]}
    assert "quantitativeAnalysis" not in parts["model.onnx"]  # nothing was measured on it
    metrics = parts["model.int8.x86.onnx"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[1] == {
        "type": "robust accuracy",
        "value": "0.790000",
        "confidenceInterval": {"lowerBound": "0.750000", "upperBound": "0.820000"},
    }
    assert [metric.get("slice") for metric in metrics] == [None, None, "pgd|ce", "square"]


def test_equal_bundles_have_equal_bills(models: dict[str, Path]) -> None:
    assert bill(models) == bill(models)
    before = bill(models)["serialNumber"]
    models["fp32"].write_bytes(b"other")
    assert bill(models)["serialNumber"] != before


def test_no_path_of_this_machine_is_shipped(models: dict[str, Path]) -> None:
    told = json.dumps(bill(models)) + render_card("faces", 3, report())
    assert "/home" not in told and str(models["fp32"].parent) not in told
    assert "folder:faces" in told


def test_the_card_says_what_was_found_and_how_far_to_believe_it() -> None:
    card = render_card("faces", 3, report())
    assert card.startswith("# `faces`, release 3\n")
    for said in (
        "**PASS**",
        "79.0 % [75.0–82.0]",
        "eps = 8/255 in the linf norm",
        "3 checks of the attacks themselves: 1 OK, 1 SUSPECT, 1 INVALID.",
        "- method: `harp`",
        "upper bound",
        "edge_verify.py",
    ):
        assert said in card
    assert card.index("INVALID H5") < card.index("SUSPECT H9")
    assert "None" not in card and "{}" not in card


def test_names_of_users_are_no_markup() -> None:
    recipe = report()["recipe"] | {"model": "a|b`<script>`\n# head"}
    card = render_card("faces", 3, report(recipe=recipe))
    assert "\n# head" not in card
