"""What is published of vulnerabilities in releases, as pip-audit looks it up.

pip-audit passes over what it cannot look up, and over what a marker keeps off this machine, and
ends well. So it is given releases without their markers, and a canary among them, which is known
to be vulnerable and never installed: who does not report it reports nothing.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

CANARY = ("flask", "0.5")
_PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
_PIP_AUDIT += ["--desc", "off", "--aliases", "on", "--no-deps", "--disable-pip"]
# Asked in this order, until one answers.
SERVICES = {name: [*_PIP_AUDIT, "--vulnerability-service", name] for name in ("pypi", "osv")}
_SECONDS = 900.0
# How pip-audit ends where the other side is not there, hangs up, or is down.
_NO_ANSWER = re.compile(r"requests\.exceptions\.\w+|\bServiceError\b|Could not connect")
_LONGEST_REASON = 200

Release = tuple[str, str]  # name, version


class Unreachable(Exception):
    """Why no service gave an answer."""


class Broken(Exception):
    """What pip-audit said instead of looking anything up."""


@dataclass(frozen=True)
class Advisory:
    """One vulnerability: all its names, the one it goes by first, and the releases without it."""

    names: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        others = f" ({', '.join(self.names[1:])})" if self.names[1:] else ""
        return f"{self.names[0]}{others}, repaired in {', '.join(self.fixed) or 'no release'}"


@dataclass(frozen=True)
class Answer:
    """What one service said.

    Attributes:
        service: its name.
        advisories: of each release that was looked up.
        canary: whether the canary was reported, every time.
    """

    service: str
    advisories: dict[Release, list[Advisory]]
    canary: bool


def look_up(services: Mapping[str, Sequence[str]], releases: Iterable[Release]) -> Answer:
    """The answer of the first service that gives one.

    Args:
        services: name -> command, which takes pip-audit's `--requirement` and `--cache-dir`.

    Raises:
        Unreachable: none does.
        Broken: pip-audit failed otherwise.
    """
    releases, reasons = list(releases), list[str]()
    for name, command in services.items():
        try:
            return _ask(name, command, releases)
        except Unreachable as error:
            reasons.append(f"{name}: {error}")
    raise Unreachable("; ".join(reasons))


def _ask(service: str, command: Sequence[str], releases: Sequence[Release]) -> Answer:
    versions: dict[str, list[str]] = {}
    for name, version in releases:
        versions.setdefault(name, []).append(version)
    advisories: dict[Release, list[Advisory]] = {}
    canary, passed_over = True, list[str]()
    # pip-audit takes one version of a package at a time.
    for chosen in zip_longest(*versions.values()):
        wanted = [pair for pair in zip(versions, chosen, strict=True) if pair[1] is not None]
        found: dict[Release, list[Advisory]] = {}
        for entry in _dependencies(command, [*wanted, CANARY]):
            if "skip_reason" in entry:
                passed_over.append(str(entry["skip_reason"]))
            else:
                found[entry["name"], entry["version"]] = [_advisory(v) for v in entry["vulns"]]
        canary = canary and bool(found.pop(CANARY, []))
        advisories |= found
    if not advisories and passed_over and not canary:
        raise Unreachable(f"passed over all, e.g. {passed_over[0]}")
    return Answer(service, advisories, canary)


def _dependencies(command: Sequence[str], releases: Sequence[Release]) -> list[dict[str, Any]]:
    """What pip-audit says of each release, as its JSON has it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "releases.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in releases), "utf-8")
        words = [*command, "--requirement", str(file), "--cache-dir", folder]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"no answer in {_SECONDS:.0f} s") from error
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1][:_LONGEST_REASON]
        kind = Unreachable if _NO_ANSWER.search(last) else Broken
        raise kind(f"pip-audit ended with {done.returncode} and {last}") from error


def _advisory(entry: Mapping[str, Any]) -> Advisory:
    return Advisory((entry["id"], *sorted(entry["aliases"])), tuple(entry["fix_versions"]))
