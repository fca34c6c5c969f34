"""Verdict files: for every image and every attack, whether one engine was still right.

One JSON per engine. The protocol says how the verdicts came about; two files can be compared image
by image exactly when their protocols hash alike. A baseline is a verdict file that also says why
it was accepted and what it replaced. Standard library only: a CI job reads these and installs
nothing.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deploy.errors import DeployError
from deploy.files import unique_keys, write_atomic

LARGEST_FILE = 64_000_000  # bytes; 10,000 images under ten attacks take 20 kB


@dataclass(frozen=True)
class Verdicts:
    """What one engine got right.

    Attributes:
        protocol: data, images and labels (digests), threat, attacks, seed, input.
        artefact: file, sha256 and precision of the engine.
        correct: "clean" and every attack of the protocol -> one flag per image.
        reason: for a baseline, why it was accepted.
        previous: for a baseline, what it replaced (artefact, protocol_hash, accuracy), if anything.
    """

    protocol: dict[str, Any]
    artefact: dict[str, str]
    correct: dict[str, list[bool]]
    reason: str | None = None
    previous: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.correct["clean"])

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
                "schema": 1,
                "protocol": self.protocol,
                "protocol_hash": protocol_hash(self.protocol),
                "artefact": self.artefact,
                "count": self.count,
                "verdicts": {name: pack(flags) for name, flags in self.flags.items()},
            }
            if self.reason is not None:
                content |= {"reason": self.reason, "previous": self.previous}
            _parse(content)
        return content


def pack(flags: Sequence[bool]) -> str:
    """Base64 of the flags, most significant bit first, padded with zeros to whole bytes."""
    size = (len(flags) + 7) // 8
    bits = "".join("1" if flag else "0" for flag in flags).ljust(8 * size, "0")
    return base64.b64encode(int(bits or "0", 2).to_bytes(size, "big")).decode()


def unpack(packed: str, count: int) -> list[bool]:
    """The `count` flags that `pack` wrote.

    Raises:
        ValueError: not canonical base64, another length, or padding bits that are not zero.
    """
    raw = base64.b64decode(packed, validate=True)
    if len(raw) != (count + 7) // 8:
        raise ValueError(f"holds {len(raw)} bytes, {count} flags take {(count + 7) // 8}")
    bits = format(int.from_bytes(raw, "big"), "b").zfill(8 * len(raw))
    flags = [bit == "1" for bit in bits[:count]]
    if pack(flags) != packed:
        raise ValueError("padding bits are not zero")
    return flags


def canonical(value: object) -> bytes:
    """The one JSON encoding that digests are taken of: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def protocol_hash(protocol: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a protocol, in hexadecimal."""
    return hashlib.sha256(canonical(protocol)).hexdigest()


def write(path: Path, verdicts: Verdicts) -> None:
    """Write a verdict file, completely or not at all.

    Raises:
        DeployError: 65, inconsistent verdicts; 73 or 74, the file cannot be created or written.
    """
    write_atomic(path, (json.dumps(verdicts.to_dict(), indent=1) + "\n").encode())


def read(path: Path) -> Verdicts:
    """Read a verdict file or baseline and believe nothing in it unchecked.

    Raises:
        DeployError: 66, there is no such file; 65, anything in it is off.
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
        return _parse(json.loads(content, object_pairs_hook=unique_keys))


@contextlib.contextmanager
def _refused(where: str) -> Iterator[None]:
    """Tell what is off in a file, or in what is to become one, as a refusal."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise DeployError(f"{where}: {error}; run verify again", 65) from error


def _parse(content: Any) -> Verdicts:
    """Verdicts from their JSON form.

    Raises:
        ValueError: anything is off.
    """
    accepted = isinstance(content, dict) and "reason" in content
    _check(content, {**_FILE, **_ACCEPTED} if accepted else _FILE, "the file")
    if accepted and content["previous"] is not None:
        _check(content["previous"], _REPLACED, "previous")
    protocol, packed = content["protocol"], content["verdicts"]
    if content["protocol_hash"] != protocol_hash(protocol):
        raise ValueError(f"protocol_hash is not that of the protocol, {protocol_hash(protocol)}")
    names = ["clean", *(attack["name"] for attack in protocol["attacks"]), "worst"]
    if len(set(names)) < len(names):
        raise ValueError("two attacks share a name, or one is called clean or worst")
    _check(packed, dict.fromkeys(names, _TEXT), "verdicts")
    flags: dict[str, list[bool]] = {}
    for name in names:
        try:
            flags[name] = unpack(packed[name], content["count"])
        except ValueError as error:
            raise ValueError(f"verdicts.{name}: {error}") from error
    if flags.pop("worst") != _all(flags):
        raise ValueError("verdicts.worst is not the AND of the others")
    reason, previous = content.get("reason"), content.get("previous")
    return Verdicts(protocol, content["artefact"], flags, reason, previous)


def _all(correct: dict[str, list[bool]]) -> list[bool]:
    return [all(column) for column in zip(*correct.values(), strict=True)]


class _Is(NamedTuple):
    """A test of one value and, in words, what passes it."""

    what: str
    test: Callable[[Any], bool]


def _check(value: Any, shape: Any, where: str) -> None:
    """Hold a value against an `_Is`, or a table against a table of them."""
    if isinstance(shape, _Is):
        if not shape.test(value):
            raise ValueError(f"{where} must be {shape.what}, got {repr(value)[:40]}")
        return
    if not isinstance(value, dict) or set(value) != set(shape):
        raise ValueError(f"{where} must hold exactly {', '.join(shape)}")
    for key, inner in shape.items():
        _check(value[key], inner, key if where == "the file" else f"{where}.{key}")


def _is_text(value: Any) -> bool:
    # Printable, so one line: names end up on terminals, in XML and in Markdown.
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _are_attacks(value: Any) -> bool:
    tables = isinstance(value, list) and all(isinstance(attack, dict) for attack in value)
    return tables and all(_is_text(attack.get("name")) for attack in value)


# Booleans are integers to Python; `type(x) is int` keeps them out.
_TEXT = _Is("one line of text", _is_text)
_INTEGER = _Is("an integer", lambda x: type(x) is int)
_NUMBER = _Is("a finite number", lambda x: type(x) in (int, float) and abs(x) < 1e308)
_DIGEST = _Is(
    "a SHA-256 digest in lower-case hexadecimal",
    lambda x: isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None,
)

_PROTOCOL = {
    "data": _DIGEST,
    "images": _DIGEST,
    "labels": _DIGEST,
    "threat": {"norm": _TEXT, "eps": _NUMBER, "low": _NUMBER, "high": _NUMBER},
    "attacks": _Is("a list of tables, each with a name", _are_attacks),
    "seed": _INTEGER,
    "input": _TEXT,
}
_ARTEFACT = {"file": _TEXT, "sha256": _DIGEST, "precision": _TEXT}
_REPLACED = {
    "artefact": _ARTEFACT,
    "protocol_hash": _DIGEST,
    "accuracy": _Is(
        "a table of shares between 0 and 1",
        lambda x: isinstance(x, dict) and all(_is_share(share) for share in x.values()),
    ),
}
_FILE = {
    "schema": _Is("1, the only one there is", lambda x: type(x) is int and x == 1),
    "protocol": _PROTOCOL,
    "protocol_hash": _DIGEST,
    "artefact": _ARTEFACT,
    "count": _Is("a positive integer", lambda x: type(x) is int and x > 0),
    "verdicts": _Is("a table", lambda x: isinstance(x, dict)),
}
_ACCEPTED = {
    "reason": _TEXT,
    "previous": _Is("null or a table", lambda x: x is None or isinstance(x, dict)),
}
