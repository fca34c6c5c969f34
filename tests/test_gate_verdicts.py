"""A verdict file says what it says, completely, or is refused before anything is made of it."""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_files import N, costs, example, health

from deploy import verdicts
from deploy.errors import DeployError
from deploy.packing import pack, unpack
from deploy.sealed import seal
from deploy.verdicts import Outdated, protocol_hash, read, write


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.booleans(), max_size=70))
def test_packing_is_numpys_and_comes_back(flags: list[bool]) -> None:
    assert base64.b64decode(pack(flags)) == np.packbits(np.array(flags, dtype=bool)).tobytes()
    assert unpack(pack(flags), len(flags)) == flags


@pytest.mark.parametrize("packed", ["gA", "gA==\n", "gB==", "gP==", "gAA=", "wA==", "ä"])
def test_another_encoding_of_the_bits_is_refused(packed: str) -> None:
    assert unpack("gA==", 1) == [True]
    with pytest.raises(ValueError, match=r".+"):
        unpack(packed, 1)


@pytest.mark.parametrize("measured", [None, costs(), costs(compressed_bytes=None, p50_ms=None)])
def test_verdicts_survive_the_file(tmp_path: Path, measured: dict[str, Any] | None) -> None:
    path = tmp_path / "verdicts.int8.json"
    write(path, example(measured=measured))
    assert read(path) == example(measured=measured)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    content = json.loads(path.read_text())
    assert content["count"] == N
    assert ("measured" in content) == (measured is not None)
    settings = {"precision": "int8", "protocol": content["protocol"]}
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    assert content["protocol_hash"] == hashlib.sha256(text.encode()).hexdigest()
    bits = np.unpackbits(np.frombuffer(base64.b64decode(content["verdicts"]["worst"]), np.uint8))
    assert bits[:N].tolist() == [int(i < 320) for i in range(N)]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "verdicts.json"
    write(path, example())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeployError, match="No space left") as refusal:
        write(path, example(worst=0))
    assert refusal.value.exit_code == 74
    assert read(path) == example()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be created") as refusal:
        write(tmp_path / "absent" / "verdicts.json", example())
    assert refusal.value.exit_code == 73


def _put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def _rehash(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def changed(content: dict[str, Any]) -> None:
        change(content)
        precision = content["artefact"]["precision"]
        content["protocol_hash"] = protocol_hash(content["protocol"], precision)

    return changed


OFF: dict[str, Callable[[dict[str, Any]], Any]] = {
    "schema": _put("schema", value=4),
    "schema 1": _put("schema", value=1),
    "schema as a boolean": _put("schema", value=True),
    "unknown key": _put("extra", value=1),
    "missing key": lambda content: content.pop("artefact"),
    "half a baseline": _put("reason", value="because"),
    "count": _put("count", value=N - 8),
    "count of one more": _put("count", value=N + 1),
    "no images": _put("count", value=0),
    "count as text": _put("count", value="400"),
    "hash": _put("protocol_hash", value="0" * 64),
    "another seed under the old hash": _put("protocol", "seed", value=1),
    "seed": _rehash(_put("protocol", "seed", value=0.5)),
    "eps": _rehash(_put("protocol", "threat", "eps", value="0.15")),
    "eps beyond floats": _rehash(_put("protocol", "threat", "eps", value=10**400)),
    "threat": _rehash(_put("protocol", "threat", value={"norm": "linf"})),
    "data": _rehash(_put("protocol", "data", value="D" * 64)),
    "attacks": _rehash(_put("protocol", "attacks", value={"name": "square"})),
    "attack without a name": _rehash(_put("protocol", "attacks", 0, value={"steps": 1})),
    "attack in two lines": _rehash(_put("protocol", "attacks", 0, "name", value="a\nb")),
    "attack called worst": _rehash(_put("protocol", "attacks", 0, "name", value="worst")),
    "attack twice": _rehash(_put("protocol", "attacks", 0, "name", value="square")),
    "attack without verdicts": lambda content: content["verdicts"].pop("square"),
    "verdicts without an attack": _put("verdicts", "apgd", value=pack([True] * N)),
    "artefact": _put("artefact", "sha256", value="a" * 63),
    "another precision under the old hash": _put("artefact", "precision", value="fp32"),
    "measured": _put("measured", value=None),
    "half a measurement": _put("measured", value={"bytes": 1}),
    "no bytes": _put("measured", value=costs(bytes=0)),
    "bytes beyond floats": _put("measured", value=costs(bytes=10**400)),
    "bytes as a number": _put("measured", value=costs(compressed_bytes=1.5)),
    "time as a truth": _put("measured", value=costs(p50_ms=True)),
    "no time": _put("measured", value=costs(float_p50_ms=0)),
    "nowhere": _put("measured", value=costs(where="")),
    "health": _put("health", value=None),
    "half a health": _put("health", value={"checks": 1}),
    "no checks": _put("health", value=health() | {"checks": 0}),
    "findings in two lines": _put("health", value=health("a\nb")),
    "findings as text": _put("health", value=health() | {"suspect": "H1"}),
    "no base64": _put("verdicts", "clean", value="!" * 68),
    "verdicts as a number": _put("verdicts", "clean", value=1),
    "worst": _put("verdicts", "worst", value=pack([True] * N)),
    "clean left out of worst": _put("verdicts", "clean", value=pack([False] * N)),
}


@pytest.mark.parametrize("what", OFF)
def test_a_file_that_is_off_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    content = example().to_dict()
    OFF[what](content)
    path = tmp_path / "verdicts.json"
    path.write_bytes(seal(content))
    with pytest.raises(DeployError) as refusal:
        read(path)
    assert refusal.value.exit_code == 65
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_padding_bits_must_be_zero(tmp_path: Path) -> None:
    odd = replace(example(), correct={k: v[:397] for k, v in example().correct.items()})
    content = odd.to_dict()
    raw = bytearray(base64.b64decode(content["verdicts"]["clean"]))
    raw[-1] |= 1
    content["verdicts"]["clean"] = base64.b64encode(raw).decode()
    (tmp_path / "v.json").write_bytes(seal(content))
    with pytest.raises(DeployError, match="padding"):
        read(tmp_path / "v.json")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"schema":1,"schema":1}']
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "verdicts.json"
    path.write_bytes(content)
    with pytest.raises(DeployError) as refusal:
        read(path)
    assert refusal.value.exit_code == 65
    assert len(str(refusal.value).splitlines()) == 1


def test_a_huge_file_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "verdicts.json"
    with path.open("wb") as file:
        file.truncate(verdicts.LARGEST_FILE + 1)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    with pytest.raises(DeployError, match="larger") as refusal:
        read(path)
    assert refusal.value.exit_code == 65


def test_a_file_of_this_schema_without_its_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps(example().to_dict()))
    with pytest.raises(DeployError, match="digest") as refusal:
        read(path)
    assert (type(refusal.value), refusal.value.exit_code) == (DeployError, 65)


def test_a_missing_file_is_another_refusal(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DeployError) as refusal:
            read(path)
        assert refusal.value.exit_code == 66


@pytest.mark.parametrize(
    "change", [{"artefact": {"file": "x"}}, {"correct": {"clean": [True], "square": [True, False]}}]
)
def test_verdicts_that_are_off_are_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DeployError) as refusal:
        write(tmp_path / "v.json", replace(example(), **change))
    assert refusal.value.exit_code == 65
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("schema", [1, 2])
def test_an_older_schema_says_what_to_do(tmp_path: Path, schema: int) -> None:
    content = example().to_dict() | {"schema": schema}
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(Outdated, match=r"run verify again.*baseline update it") as refusal:
        read(tmp_path / "v.json")
    assert refusal.value.exit_code == 65


def test_what_a_device_writes_is_read(tmp_path: Path) -> None:
    replay = [{"name": "replay", "sha256": "c" * 64}]
    device = example(attacks=replay, measured=costs(float_p50_ms=None))
    device.correct["replay"] = device.correct.pop("square")
    del device.correct["pgd-ce@finetuned"]
    write(tmp_path / "device.json", device)
    assert read(tmp_path / "device.json") == device
