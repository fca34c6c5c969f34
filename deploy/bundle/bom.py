"""A bill of materials for machine learning: CycloneDX 1.6, in JSON.

What models there are, by their digests; what they were measured to do, with intervals; on what data
and with which software they were made. The same bundle gives the same bytes: no times, no chance.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.bundle.card import data_name
from deploy.files import sha256

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "advprune")
_LIMIT = "Robust accuracy is an upper bound: attacks that were not run may find more."


def render_bom(
    name: str,
    release: int,
    models: Mapping[str, Path],
    report: Mapping[str, Any],
    data: str,
    software: Mapping[str, str],
) -> bytes:
    """The bill of a bundle.

    Args:
        name, release: of the bundle.
        models: name -> file.
        report: of the run.
        data: SHA-256 of the data set.
        software: package -> version that the models were made with.
    """
    digests = {file: sha256(file) for file in models.values()}
    source = data_name(report)
    data_set = {
        "type": "data",
        "bom-ref": "data",
        "name": source,
        "hashes": [_hash(data)],
        "data": [{"type": "dataset", "name": source}],
    }
    components = [
        *(_model(model, file, digests[file], release, report) for model, file in models.items()),
        data_set,
    ]
    identity = json.dumps([name, release, sorted(digests.values())])
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, identity)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "bundle",
                "name": name,
                "version": str(release),
            },
            "tools": {
                "components": [
                    {"type": "library", "name": package, "version": version}
                    for package, version in sorted(software.items())
                ]
            },
        },
        "components": components,
        "dependencies": [
            {"ref": "bundle", "dependsOn": [f"model-{model}" for model in models]},
            *({"ref": f"model-{model}", "dependsOn": ["data"]} for model in models),
        ],
    }
    return (json.dumps(bom, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _model(
    name: str, file: Path, digest: str, release: int, report: Mapping[str, Any]
) -> dict[str, Any]:
    recipe, threat = report["recipe"], report["threat"]
    # What was measured on this very file, and nothing on its ancestors.
    measured = [engine for engine in report["engines"] if engine["file"] == file.name]
    metrics = [
        _metric(kind, value, None)
        for engine in measured
        for kind, value in (
            ("clean accuracy", engine["clean"]),
            ("robust accuracy", engine["worst"]),
        )
    ] + [
        _metric("robust accuracy", value, attack)
        for engine in measured
        for attack, value in engine["attacks"].items()
    ]
    properties = {
        "advprune:method": recipe["method"],
        "advprune:sparsity": report["sparsity"]["got"],
        "advprune:norm": threat["norm"],
        "advprune:eps": threat["eps"],
        "advprune:images": report["images"],
        "advprune:verdict": report["verdict"]["status"],
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model-{name}",
        "name": file.name,
        "version": str(release),
        "hashes": [_hash(digest)],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image classification",
                "modelArchitecture": recipe["model"],
                "datasets": [{"ref": "data"}],
                "inputs": [{"format": "image"}],
                "outputs": [{"format": "logits"}],
            },
            **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
            "considerations": {"technicalLimitations": [_LIMIT]},
        },
        "properties": [{"name": key, "value": str(value)} for key, value in properties.items()],
    }


def _metric(kind: str, value: Mapping[str, float], attack: str | None) -> dict[str, Any]:
    """A share with its 95 % Clopper-Pearson interval."""
    return {
        "type": kind,
        "value": f"{value['value']:.6f}",
        **({"slice": attack} if attack else {}),
        "confidenceInterval": {
            "lowerBound": f"{value['low']:.6f}",
            "upperBound": f"{value['high']:.6f}",
        },
    }


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
