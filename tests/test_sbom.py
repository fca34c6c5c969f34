"""Promise: the bill of materials is the lock, all of it and nothing else, as CycloneDX has it."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from locks import REQUIREMENTS, ROOT, Pin, read_lock
from packageurl import PackageURL
from packaging.requirements import Requirement

LOCK = (REQUIREMENTS / "run.txt").read_text()
# As the text of the lock has it, whatever the bill was made from.
PIN = r"^([a-z0-9-]+)==(\S+)(?: ; (.+?))? \\\n((?:    --hash.*\n)+)"
PINS = re.findall(PIN, LOCK, re.MULTILINE)


def bill() -> dict[str, Any]:
    return json.loads(sbom.render_sbom(read_lock(REQUIREMENTS / "run.txt")))


def test_the_bill_is_a_bill() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    good = bill()
    assert validator.validate_str(json.dumps(good)) is None
    wrong = copy.deepcopy(good)
    wrong["components"][0]["hashes"][0]["content"] = "no digest"
    assert validator.validate_str(json.dumps(wrong)) is not None  # so it looks


def test_every_pin_is_in_it_with_its_digests_and_nothing_else_is() -> None:
    listed = [
        (
            part["name"],
            part["version"],
            "".join(entry["value"] for entry in part.get("properties", [])),
            [entry["content"] for entry in part["hashes"]],
        )
        for part in bill()["components"]
    ]
    assert len(PINS) == LOCK.count("==") - LOCK.count(" == '")
    assert listed == [
        (name, version, marker, re.findall("sha256:([0-9a-f]{64})", hashes))
        for name, version, marker, hashes in PINS
    ]
    assert sum(len(hashes) for *_, hashes in listed) == LOCK.count("--hash=sha256:")
    assert {entry["alg"] for part in bill()["components"] for entry in part["hashes"]} == {
        "SHA-256"
    }


def test_package_urls_are_of_the_releases() -> None:
    for part in bill()["components"]:
        url = PackageURL.from_string(part["purl"])
        assert (url.type, url.name, url.version) == ("pypi", part["name"], part["version"])
        assert url.to_string() == part["purl"] == part["bom-ref"]
    local = Pin("torch", "2.15.0+cpu", "", ("0" * 64,), ())
    assert PackageURL.from_string(sbom.purl(local)).version == "2.15.0+cpu"


def test_what_needs_what_is_what_the_packages_say() -> None:
    edges = {edge["ref"]: edge["dependsOn"] for edge in bill()["dependencies"]}
    assert edges.keys() == {"advprune", *(part["bom-ref"] for part in bill()["components"])}
    named = {ref: {PackageURL.from_string(child).name for child in edges[ref]} for ref in edges}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named["advprune"] == {Requirement(text).name for text in project["dependencies"]}
    (jinja,) = [ref for ref in edges if "/jinja2@" in ref]
    assert named[jinja] == {"markupsafe"}


def test_licences_are_those_of_what_is_installed() -> None:
    parts = {(part["name"], part["version"]): part for part in bill()["components"]}
    installed = parts["onnx", version("onnx")]
    assert installed["licenses"] == [{"expression": "Apache-2.0"}]
    assert parts["jinja2", version("jinja2")]["licenses"] == [{"license": {"name": "BSD License"}}]
    # numpy is locked twice, for older and newer Pythons; here is one.
    numpy = [part for (name, _), part in parts.items() if name == "numpy"]
    assert [("licenses" in part) for part in numpy] == [
        part["version"] == version("numpy") for part in numpy
    ]
    assert sbom.licences("no-such-package", "1.0") == []


def test_equal_locks_have_equal_bills(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / ".ci/sbom.py")]
    bills = []
    for number, seed in enumerate(("0", "1")):
        out = tmp_path / f"{number}/sbom.json"
        environment = {"PYTHONHASHSEED": seed}
        subprocess.run([*words, str(out)], env=environment, cwd=tmp_path, check=True)
        bills.append(out.read_bytes())
    # Not beside one of this process: Ray, where a test has loaded it, puts packages of its own
    # before those that are installed.
    assert bills[0] == bills[1]
    pins = read_lock(REQUIREMENTS / "run.txt")
    other = json.loads(sbom.render_sbom(pins[1:]))
    assert other["serialNumber"] != bill()["serialNumber"]


def test_it_tells_nothing_of_this_machine() -> None:
    told = json.dumps(bill())
    assert str(ROOT) not in told and str(Path.home()) not in told
    assert re.findall(r"\w+://[^\"]*", told) == [bill()["$schema"]]
