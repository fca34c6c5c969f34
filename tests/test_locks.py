"""Promise: what is installed is pinned by version and digest, and below no release known unsafe."""

import re
import tomllib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from locks import OVERRIDES, REQUIREMENTS, ROOT, locks, read_lock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKS = locks()
# Below these, opening a file runs code or spoils memory (torch, onnx), or a reply of a server does
# harm (requests, urllib3, which only torchattacks wants, and wants old).
FLOORS = {"torch": "2.11", "onnx": "1.21", "requests": "2.32.4", "urllib3": "2.7"}


def entries(path: Path) -> dict[Requirement, list[str]]:
    """Requirement -> digests, read as pip does: joined lines, comments dropped."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found: dict[Requirement, list[str]] = {}
    for line in filter(None, lines):
        requirement, *options = re.split(r"\s+--", line)
        assert all(option.startswith("hash=") for option in options), line
        found[Requirement(requirement)] = [option.removeprefix("hash=") for option in options]
    return found


def project() -> dict[str, list[Requirement]]:
    """Every list of requirements of pyproject.toml, by its name there."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = {"": content["project"]["dependencies"], **content["dependency-groups"]}
    lists |= content["project"]["optional-dependencies"]
    return {name: [Requirement(text) for text in texts] for name, texts in lists.items()}


def test_all_locks_are_known() -> None:
    names = {path.name for path in REQUIREMENTS.iterdir()}
    assert {path.name for path in LOCKS} == names - {OVERRIDES}
    assert {"run.txt", "dev.txt", "uv.txt"} < names


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_line_is_one_release_with_its_digests(path: Path) -> None:
    found = entries(path)
    assert found
    for requirement, digests in found.items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, requirement
        assert requirement.url is None and not requirement.extras, requirement
        assert digests and all(re.fullmatch("sha256:[0-9a-f]{64}", d) for d in digests), requirement
        assert len(digests) == len(set(digests)), requirement


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_what_reads_locks_reads_them_as_pip_does(path: Path) -> None:
    for pin, (requirement, digests) in zip(read_lock(path), entries(path).items(), strict=True):
        (specifier,) = requirement.specifier
        assert pin.name == requirement.name == canonicalize_name(pin.name)
        assert pin.version == specifier.version == str(Version(pin.version))
        assert [f"sha256:{digest}" for digest in pin.hashes] == digests
        assert pin.marker == str(requirement.marker or "").replace('"', "'")


@pytest.mark.parametrize("path", [*LOCKS, REQUIREMENTS / OVERRIDES], ids=lambda path: path.name)
def test_no_index_is_named(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"://|--(extra-)?index|find-links|-host|^-[a-z]|@", text, re.MULTILINE)
    # Nor a host: a name with a dot that is neither a version nor a file.
    words = re.findall(r"[A-Za-z][\w-]*(?:\.[A-Za-z][\w-]*)+", text)
    assert {word for word in words if not word.endswith((".txt", ".toml"))} == set()


def test_tests_run_on_what_is_shipped() -> None:
    run, dev = (set(read_lock(REQUIREMENTS / name)) for name in ("run.txt", "dev.txt"))
    shipped, tested = ({replace(pin, parents=()) for pin in pins} for pins in (run, dev))
    assert shipped < tested
    names = {pin.name for pin in shipped}
    assert {pin for pin in tested if pin.name in names} == shipped


@pytest.mark.parametrize("name", ["run.txt", "dev.txt"])
def test_a_lock_has_what_the_project_asks_for_and_nothing_unasked(name: str) -> None:
    pins = read_lock(REQUIREMENTS / name)
    versions = defaultdict(list)
    for pin in pins:
        versions[pin.name].append(Version(pin.version))
    groups = ["", "dev", "build"] if name == "dev.txt" else [""]
    for requirement in (r for group in groups for r in project()[group]):
        locked = versions[canonicalize_name(requirement.name)]
        assert locked and all(version in requirement.specifier for version in locked), requirement
    known = set(versions)
    for pin in pins:
        parents = {re.split(r"[\[ ]", parent)[0] for parent in pin.parents} - {"-c", "--override"}
        assert parents and parents <= known | {"advprune"}, pin.name


@pytest.mark.parametrize("name", FLOORS)
def test_nothing_below_a_safe_release_is_locked(name: str) -> None:
    for path in ("run.txt", "dev.txt"):
        locked = [pin.version for pin in read_lock(REQUIREMENTS / path) if pin.name == name]
        assert locked and min(map(Version, locked)) >= Version(FLOORS[name]), path


@pytest.mark.parametrize("name", FLOORS)
def test_the_next_lock_cannot_go_below_it_either(name: str) -> None:
    """By what the project asks for; by an override, of what only another package asks for."""
    overrides = [line.split("#")[0] for line in (REQUIREMENTS / OVERRIDES).read_text().splitlines()]
    overriding = [Requirement(line) for line in overrides if line]
    (requirement,) = [r for r in [*project()[""], *overriding] if r.name == name]
    assert requirement.marker is None
    floors = [s.version for s in requirement.specifier if s.operator == ">="]
    assert floors and max(map(Version, floors)) >= Version(FLOORS[name])


def test_attacks_of_others_do_not_bring_back_what_is_old() -> None:
    """torchattacks from 3.5.1 on; uv would rather take 3.3.0 than leave out an override."""
    (pin,) = [pin for pin in read_lock(REQUIREMENTS / "run.txt") if pin.name == "torchattacks"]
    assert Version(pin.version) >= Version("3.5.1")
    run = {pin.name: pin for pin in read_lock(REQUIREMENTS / "run.txt")}
    for name in ("requests", "urllib3"):
        assert f"--override requirements/{OVERRIDES}" in run[name].parents
