"""A bill of what advprune runs on: `requirements/run.txt` in CycloneDX 1.6.

    python .ci/sbom.py build/sbom.cdx.json

Where it is installed, a package's own metadata says its licence. The same lock in the same
environment gives the same bytes: no times, no chance.
"""

import json
import re
import sys
import tomllib
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from locks import REQUIREMENTS, ROOT, Pin, read_lock

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "advprune")
_LICENCE = "License :: "
_LONGEST_NAME = 80


def main() -> None:
    (out,) = map(Path, sys.argv[1:])
    bill = render_sbom(read_lock(REQUIREMENTS / "run.txt"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(bill)
    sys.stdout.write(f"{out}\n")


def render_sbom(pins: Sequence[Pin]) -> bytes:
    """The bill of some pins as UTF-8 JSON, one component each, in their order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    root = {
        "type": "application",
        "bom-ref": project["name"],
        "name": project["name"],
        "version": project["version"],
        "licenses": [{"license": {"id": project["license"]}}],
    }
    names = [(project["name"], root["bom-ref"]), *((pin.name, purl(pin)) for pin in pins)]
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": [_component(pin) for pin in pins],
        "dependencies": [
            {"ref": ref, "dependsOn": [purl(pin) for pin in pins if name in _parents(pin)]}
            for name, ref in names
        ],
    }
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SPACE, json.dumps(bill, sort_keys=True))}"
    return (json.dumps(bill, indent=1, sort_keys=True) + "\n").encode()


def purl(pin: Pin) -> str:
    """The package URL of a release."""
    return f"pkg:pypi/{pin.name}@{quote(pin.version, safe='')}"


def licences(name: str, version: str) -> list[dict[str, Any]]:
    """What a release says of its licence; nothing where it is not the one that is installed."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return []
    if said["Version"] != version:
        return []
    if expression := said.get("License-Expression"):
        return [{"expression": expression}]
    kinds = [text for text in said.get_all("Classifier") or [] if text.startswith(_LICENCE)]
    names = [kind.rpartition(" :: ")[2] for kind in kinds]
    # Older metadata may hold the whole text of a licence there.
    text = said.get("License") or ""
    if not names and text and len(text) <= _LONGEST_NAME and text.isprintable():
        names = [text]
    return [{"license": {"name": name}} for name in names]


def _component(pin: Pin) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl(pin),
        "name": pin.name,
        "version": pin.version,
        "purl": purl(pin),
        # Of every file that there is of the release; one of them is installed.
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in pin.hashes],
    }
    if said := licences(pin.name, pin.version):
        component["licenses"] = said
    if pin.marker:
        component["properties"] = [{"name": "advprune:marker", "value": pin.marker}]
    return component


def _parents(pin: Pin) -> set[str]:
    """Names of the packages that asked for a release: `advprune (pyproject.toml)` is advprune."""
    return {re.split(r"[\[ ]", parent)[0] for parent in pin.parents}


if __name__ == "__main__":
    main()
