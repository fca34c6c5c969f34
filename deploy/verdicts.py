"""Verdict files: for every image and every attack, whether one engine was still right.

One JSON per engine. The protocol says how the verdicts came about; two files can be compared image
by image exactly when their protocols hash alike. A baseline is a verdict file that also says why
it was accepted and what it replaced. Standard library only: a CI job reads these and installs
nothing.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import shape, strict_json
from deploy.errors import DeployError
from deploy.files import write_atomic
from deploy.packing import pack, unpack
from deploy.sealed import is_sealed, seal, unseal

SCHEMA = 3
LARGEST_FILE = 8_000_000  # bytes; 10,000 images under ten attacks take 20 kB
_OLDER = ("1", "2")


def verdict_file(engine: str) -> str:
    """The name of an engine's file among those of a run."""
    return f"verdicts.{engine}.json"


class Outdated(DeployError):
    """A file of an older schema: its protocol meant something else, so nothing is read of it."""


@dataclass(frozen=True)
class Verdicts:
    """What one engine got right.

    Attributes:
        protocol: data, images and labels (digests), threat, attacks, seed, input.
        artefact: file, sha256 and precision of the engine.
        correct: "clean" and every attack of the protocol -> one flag per image.
        reason: for a baseline, why it was accepted.
        previous: for a baseline, what it replaced (artefact, protocol_hash, accuracy), if anything.
        measured: what the engine costs: bytes of the file and as a download, milliseconds of one
            call (p50_ms, p99_ms), those of the float engine in turn with it in the same process
            (float_p50_ms), each None where unknown, and where: runtime, device and threads.
        health: of the evaluation: the number of "checks", what made it "invalid", and the ids of
            what was "suspect"; None where it was not checked, as by a replay.
    """

    protocol: dict[str, Any]
    artefact: dict[str, str]
    correct: dict[str, list[bool]]
    reason: str | None = None
    previous: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    health: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.correct["clean"])

    @property
    def protocol_hash(self) -> str:
        # An artefact that lacks its precision is refused when it is written, not here.
        return protocol_hash(self.protocol, self.artefact.get("precision", ""))

    @property
    def flags(self) -> dict[str, list[bool]]:
        """`correct` and "worst": the images that are right clean and under every attack."""
        return {**self.correct, "worst": _all(self.correct)}

    def accuracy(self) -> dict[str, float]:
        """The share of all images that are right, clean, per attack and "worst"."""
        return {name: sum(flags) / self.count for name, flags in self.flags.items()}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, checked as strictly as a file that is read.

        Raises:
            DeployError: 65, the verdicts contradict each other or the protocol.
        """
        with _refused("verdicts"):
            content: dict[str, Any] = {
                "schema": SCHEMA,
                "protocol": self.protocol,
                "protocol_hash": self.protocol_hash,
                "artefact": self.artefact,
                "count": self.count,
                "verdicts": {name: pack(flags) for name, flags in self.flags.items()},
            }
            optional = {"measured": self.measured, "health": self.health}
            content |= {key: value for key, value in optional.items() if value is not None}
            if self.reason is not None:
                content |= {"reason": self.reason, "previous": self.previous}
            _parse(content)
        return content

    def to_json(self) -> bytes:
        """The file, which ends in its own digest; refusals as `to_dict`."""
        return seal(self.to_dict())


def canonical(value: object) -> bytes:
    """The one JSON encoding that digests are taken of: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def protocol_hash(protocol: dict[str, Any], precision: str) -> str:
    """SHA-256 of the canonical JSON of a protocol and a precision, in hexadecimal."""
    settings = {"protocol": protocol, "precision": precision}
    return hashlib.sha256(canonical(settings)).hexdigest()


def write(path: Path, verdicts: Verdicts) -> None:
    """Write a verdict file, completely or not at all.

    Raises:
        DeployError: 65, inconsistent verdicts; 73 or 74, the file cannot be created or written.
    """
    write_atomic(path, verdicts.to_json())


def read(path: Path) -> Verdicts:
    """Read a verdict file or baseline and believe nothing in it unchecked.

    Raises:
        DeployError: 66, there is no such file; 65, anything in it is off.
        Outdated: 65, it was written before this schema.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DeployError(
            f"{path}: cannot be read ({error.strerror}); `advprune verify` writes it", 66
        ) from error
    if len(content) > LARGEST_FILE:
        raise DeployError(f"{path}: larger than {LARGEST_FILE} bytes; not a verdict file", 65)
    with _refused(str(path)):
        if not is_sealed(content):
            _demand_present(content, path)
        return _parse(unseal(content))


def _demand_present(content: bytes, path: Path) -> None:
    """Raises Outdated where a file is of a schema that had no digest in it, or ValueError."""
    parsed = strict_json.loads(content)
    if isinstance(parsed, dict) and (schema := str(parsed.get("schema"))) in _OLDER:
        raise Outdated(
            f"{path}: schema {schema} is not read any more, only {SCHEMA}; run verify again, or "
            "where this is a baseline update it (--update-baseline)",
            65,
        )


@contextlib.contextmanager
def _refused(where: str) -> Iterator[None]:
    """Tell what is off in a file, or in what is to become one, as a refusal."""
    try:
        yield
    except ValueError as error:
        raise DeployError(f"{where}: {error}; run verify again", 65) from error


def _parse(content: Any) -> Verdicts:
    """Verdicts from their JSON form.

    Raises:
        ValueError: anything is off.
    """
    shape.check(content, shape.TABLE, "the file")
    expected = dict(_FILE)
    for key, more in _MORE.items():
        expected |= more if key in content else {}
    shape.check(content, expected)
    protocol, packed = content["protocol"], content["verdicts"]
    digest = protocol_hash(protocol, content["artefact"]["precision"])
    if content["protocol_hash"] != digest:
        raise ValueError(f"protocol_hash is not that of protocol and precision, {digest}")
    names = ["clean", *(attack["name"] for attack in protocol["attacks"]), "worst"]
    if len(set(names)) < len(names):
        raise ValueError("two attacks share a name, or one is called clean or worst")
    shape.check(packed, dict.fromkeys(names, shape.TEXT), "verdicts")
    flags: dict[str, list[bool]] = {}
    for name in names:
        try:
            flags[name] = unpack(packed[name], content["count"])
        except ValueError as error:
            raise ValueError(f"verdicts.{name}: {error}") from error
    if flags.pop("worst") != _all(flags):
        raise ValueError("verdicts.worst is not the AND of the others")
    optional = {key: content.get(key) for key in ("reason", "previous", "measured", "health")}
    return Verdicts(protocol, content["artefact"], flags, **optional)


def _all(correct: dict[str, list[bool]]) -> list[bool]:
    return [all(column) for column in zip(*correct.values(), strict=True)]


def _are_attacks(value: Any) -> bool:
    tables = isinstance(value, list) and all(isinstance(attack, dict) for attack in value)
    return tables and all(shape.is_text(attack.get("name")) for attack in value)


def _are_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(
        shape.is_number(x) and 0 <= x <= 1 for x in value.values()
    )


_PROTOCOL = {
    "data": shape.DIGEST,
    "images": shape.DIGEST,
    "labels": shape.DIGEST,
    "threat": {"norm": shape.TEXT, "eps": shape.NUMBER, "low": shape.NUMBER, "high": shape.NUMBER},
    "attacks": shape.Is("a list of tables, each with a name", _are_attacks),
    "seed": shape.INTEGER,
    "input": shape.TEXT,
}
_ARTEFACT = {"file": shape.TEXT, "sha256": shape.DIGEST, "precision": shape.TEXT}
_REPLACED = {
    "artefact": _ARTEFACT,
    "protocol_hash": shape.DIGEST,
    "accuracy": shape.Is("a table of shares between 0 and 1", _are_shares),
}
_POSITIVE = shape.OrNull(shape.Is("a positive number", lambda x: shape.is_number(x) and x > 0))
_MEASURED = {
    "bytes": shape.COUNT,
    "compressed_bytes": shape.OrNull(shape.COUNT),
    "p50_ms": _POSITIVE,
    "p99_ms": _POSITIVE,
    "float_p50_ms": _POSITIVE,
    "where": shape.TEXT,
}
_FILE = {
    "schema": shape.Is(f"{SCHEMA}", lambda x: type(x) is int and x == SCHEMA),
    "protocol": _PROTOCOL,
    "protocol_hash": shape.DIGEST,
    "artefact": _ARTEFACT,
    "count": shape.COUNT,
    "verdicts": shape.TABLE,
}
_LINES = shape.Is(
    "a list of lines of text", lambda x: isinstance(x, list) and all(map(shape.is_text, x))
)
_HEALTH = {"checks": shape.COUNT, "invalid": _LINES, "suspect": _LINES}
# What a file may hold besides, by the key that tells it.
_MORE = {
    "measured": {"measured": _MEASURED},
    "health": {"health": _HEALTH},
    "reason": {"reason": shape.TEXT, "previous": shape.OrNull(_REPLACED)},
}
