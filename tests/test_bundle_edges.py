"""Where a bundle is nearly right: the last byte of a limit, a key more, a link for a file."""

import hashlib
import importlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle, reseal
from signing_keys import make_keys
from test_bundle_archive import files, rewritten

from deploy.bundle import archive, check, manifest
from deploy.bundle.archive import pack, unpack
from deploy.bundle.check import check_integrity
from deploy.bundle.manifest import check_names, entries_of, parse, read_outside, write_manifest
from deploy.bundle.signature import fingerprint, read_public
from deploy.errors import DeployError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(make_bundle(folder), folder / "bundle.tar")
    return folder / "bundle.tar"


def refused(check: Callable[..., object], *arguments: object, code: int = 65) -> str:
    with pytest.raises(DeployError) as refusal:
        check(*arguments)
    assert refusal.value.exit_code == code
    return str(refusal.value)


# Names and limits --------------------------------------------------------------------------------


def test_a_thousand_files_are_taken_and_not_one_more() -> None:
    check_names({f"file{i}": None for i in range(1000)})
    with pytest.raises(ValueError, match="1001 files, more than 1000"):
        check_names({f"file{i}": None for i in range(1001)})


@pytest.mark.parametrize("name", ["a/../b", "./a", "a//b", "a/", "/a", "-a", ".a", "a/.b", "é", ""])
def test_a_name_is_spelled_in_one_way(name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        check_names({name: None})


@pytest.mark.parametrize("names", [["a/x", "A/y"], ["a", "A/y"], ["x", "SHA256SUMS"], ["a", "a/b"]])
def test_two_names_that_are_one_where_case_does_not_count_are_refused(names: list[str]) -> None:
    if names == ["a", "a/b"]:
        check_names(dict.fromkeys(names))  # no disk can hold both, so none ever lists them
        return
    with pytest.raises(ValueError, match="names clash"):
        check_names(dict.fromkeys(names))


def test_folders_count_among_what_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many as files, so that each may have a folder."""
    monkeypatch.setattr(manifest, "MOST_FILES", 2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    assert set(entries_of(tmp_path)) == {"a/x", "b/x"}
    (tmp_path / "c").write_text("x")
    assert "more than 2 files" in refused(entries_of, tmp_path)


def test_a_file_of_the_largest_size_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path)
    largest = max(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    monkeypatch.setattr(manifest, "LARGEST_FILE", largest)
    check_integrity(bundle)
    monkeypatch.setattr(manifest, "LARGEST_FILE", largest - 1)
    assert f"{largest} bytes, above {largest - 1}" in refused(check_integrity, bundle)


def test_a_missing_manifest_is_named_before_anything_is_read(tmp_path: Path) -> None:
    message = refused(read_outside, tmp_path, "manifest.json", code=66)
    assert message.endswith("manifest.json: No such file or directory; give the folder of a bundle")


def test_no_number_that_json_lacks_is_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, {"metadata": {"share": float("nan")}})


# What a manifest says ----------------------------------------------------------------------------


def _set(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(changes)


def _drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def _entry(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["files"]["labels.txt"].update(changes)


SAID: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a replay without its protocol": (_drop("protocol"), "go together"),
    "a protocol without its replay": (_drop("replay"), "go together"),
    "no name": (_drop("name"), "holds "),
    "no metadata": (_drop("metadata"), "holds "),
    "a name that is no text": (_set(name=3), "name 3"),
    "an input that is none": (_set(input=[]), "input []"),
    "metadata that are none": (_set(metadata="x"), "metadata 'x'"),
    "a shape of four": (_set(input={"shape": [1, 1, 8, 8]}), "input of shape"),
    "a shape of fractions": (_set(input={"shape": [1, 8, 8.0]}), "input of shape"),
    "a shape that is no list": (_set(input={"shape": "188"}), "input of shape"),
    "an entry with a key more": (_entry(mode=1), "an entry holds"),
    "a digest that is too short": (_entry(sha256="0" * 63), "entry {"),
    "a digest in capitals": (_entry(sha256="A" * 64), "entry {"),
    "a digest with more behind": (_entry(sha256="0" * 64 + "\n"), "entry {"),
    "a size below zero": (_entry(bytes=-1), "entry {"),
    "a size that is a truth": (_entry(bytes=True), "entry {"),
    "a size with a point": (_entry(bytes=1.0), "entry {"),
    "a truth that is a number": (_entry(executable=0), "entry {"),
    "another size": (_entry(bytes=1), "labels.txt: other than manifest.json says"),
    "a script": (_entry(executable=True), "labels.txt: other than manifest.json says"),
    "another digest": (_entry(sha256="0" * 64), "labels.txt: other than manifest.json says"),
}


@pytest.mark.parametrize("what", SAID)
def test_a_manifest_that_says_otherwise_is_refused(tmp_path: Path, what: str) -> None:
    change, said = SAID[what]
    bundle = make_bundle(tmp_path)
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    reseal(bundle, "manifest.json", json.dumps(content).encode())
    assert said in refused(check_integrity, bundle)


@pytest.mark.parametrize("gone", [("replay", "protocol"), ("runtime",), ()])
def test_what_may_be_left_out_may_be(tmp_path: Path, gone: tuple[str, ...]) -> None:
    bundle = make_bundle(tmp_path)
    content = json.loads((bundle / "manifest.json").read_text()) | {"runtime": "ort-cpu"}
    content = {key: value for key, value in content.items() if key not in gone}
    found = parse(json.dumps(content | {"release": 0}).encode(), "here")
    assert found["release"] == 0
    assert found.keys() == content.keys()


def test_an_empty_file_may_be_in_a_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, beside={"empty.txt": b""})
    assert check_integrity(bundle)["files"]["empty.txt"].bytes == 0


@pytest.mark.parametrize("without", ["manifest.json", "model.onnx"])
def test_sums_must_list_every_file(tmp_path: Path, without: str) -> None:
    bundle = make_bundle(tmp_path)
    lines = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith(f"  {without}\n")]
    (bundle / "SHA256SUMS").write_text("".join(kept))
    assert f"{without} missing, or not listed" in refused(check_integrity, bundle)


def test_sums_without_their_last_line_end_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "SHA256SUMS").write_text((bundle / "SHA256SUMS").read_text().rstrip("\n"))
    assert "has a line that is not a digest" in refused(check_integrity, bundle)


# Archives ----------------------------------------------------------------------------------------


def _in_place(**changes: object) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    """Something else under the name of the labels, where the labels should come."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        place = [member.name for member, _ in members].index("labels.txt.xz")
        member = tarfile.TarInfo("labels.txt.xz")
        for key, value in changes.items():
            setattr(member, key, value)
        members[place] = (member, b"")

    return change


@pytest.mark.parametrize(
    "kind",
    (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.AREGTYPE,
        tarfile.CONTTYPE,
    ),
)
def test_what_is_no_plain_file_is_refused_in_the_place_of_one(
    packed: Path, tmp_path: Path, kind: bytes
) -> None:
    change = _in_place(type=kind, linkname="/etc/passwd")
    made = rewritten(packed, change, tmp_path / "x.tar")
    assert "a member is no plain file" in refused(unpack, made, tmp_path / "unpacked")


@pytest.mark.parametrize("every", [True, False])
def test_headers_that_say_more_are_refused(packed: Path, tmp_path: Path, every: bool) -> None:
    """Of one member, or of all: pax headers may rename and resize what comes after them."""
    with tarfile.open(packed) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # pyright: ignore
    said = {"comment": "x"}
    settings: dict[str, Any] = {"pax_headers": said} if every else {}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, **settings) as tar:
        for place, (member, content) in enumerate(members):
            member.pax_headers = {} if every or place < 5 else said
            tar.addfile(member, io.BytesIO(content))
    assert "no plain file" in refused(unpack, tmp_path / "x.tar", tmp_path / "unpacked")


def test_a_file_that_hardly_compresses_may_grow_by_a_little(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth and a thousand bytes, and an archive that asks for more is refused unread."""
    size = len(packed.parent.joinpath("bundle", "labels.txt").read_bytes())
    for more, said in (
        (0, "not an archive of a bundle"),
        (1, f"above {size + size // 100 + 1000}"),
    ):
        content = bytes(size + size // 100 + 1000 + more)

        def change(members: list[tuple[tarfile.TarInfo, bytes]], content: bytes = content) -> None:
            place = [member.name for member, _ in members].index("labels.txt.xz")
            members[place][0].size = len(content)
            members[place] = (members[place][0], content)

        message = refused(
            unpack, rewritten(packed, change, tmp_path / "x.tar"), tmp_path / "unpacked"
        )
        assert said in message
        assert ("above" in message) == bool(more)


def test_an_archive_of_the_largest_size_is_taken(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = packed.stat().st_size
    monkeypatch.setattr(archive, "_LARGEST", size)
    unpack(packed, tmp_path / "unpacked")
    monkeypatch.setattr(archive, "_LARGEST", size - 1)
    assert f"{size} bytes, above {size - 1}" in refused(unpack, packed, tmp_path / "again")


def test_models_of_zeros_travel_as_distances_and_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pruned = np.where(random.random(50_000) < 0.01, random.integers(1, 256, 50_000), 0)
    bundle = make_bundle(tmp_path, beside={"pruned.bin": pruned.astype(np.uint8).tobytes()})
    pack(bundle, tmp_path / "bundle.tar")
    with tarfile.open(tmp_path / "bundle.tar") as tar:
        names = tar.getnames()
    assert "pruned.bin.sparse" in names  # in which most bytes are zeros
    assert "golden.npz.xz" in names  # in which few are
    unpack(tmp_path / "bundle.tar", tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == files(bundle)


def test_zeros_that_compress_better_as_they_are_travel_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, beside={"even.bin": (bytes(300) + b"abc") * 500})
    sizes = pack(bundle, tmp_path / "bundle.tar")
    assert sizes["even.bin"] <= len(lzma.compress((bytes(300) + b"abc") * 500, preset=6))


def _without(name: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
    return lambda members: members.pop([member.name for member, _ in members].index(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manifest.json", "does not begin with manifest.json"),
        ("SHA256SUMS", "x.tar: lacks SHA256SUMS"),
        ("labels.txt.xz", "x.tar: lacks labels.txt; fetch"),
    ],
)
def test_what_an_archive_lacks_is_named(packed: Path, tmp_path: Path, name: str, said: str) -> None:
    made = rewritten(packed, _without(name), tmp_path / "x.tar")
    assert said in refused(unpack, made, tmp_path / "unpacked")


def test_an_older_archive_is_refused_before_anything_is_decompressed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(packed: bytes, size: int) -> bytes:
        raise AssertionError("it was decompressed")

    monkeypatch.setattr(archive, "_UNPACK", {".xz": fail, ".sparse": fail})
    message = refused(unpack, packed, tmp_path / "unpacked", None, 4, code=78)
    assert "release 3 of linear, and at least 4 is wanted" in message


def test_a_first_release_is_taken_where_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, release=0)
    opened: list[Path] = []
    monkeypatch.setattr(check, "ask", lambda module, words, folder, _: opened.append(folder))
    for found in (check.check_bundle(bundle), check_integrity(bundle)):
        assert found["release"] == 0
    assert opened == [bundle]
    pack(bundle, tmp_path / "bundle.tar")
    assert unpack(tmp_path / "bundle.tar", tmp_path / "unpacked")["release"] == 0


# Signatures --------------------------------------------------------------------------------------


def test_who_lacks_the_package_for_signatures_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deploy.bundle.signature", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    message = refused(importlib.import_module, "deploy.bundle.signature", code=69)
    assert message.endswith("type: pip install cryptography")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_fingerprint_is_what_openssl_makes_of_the_key(tmp_path: Path, kind: str) -> None:
    keys = make_keys(tmp_path, kind)
    words = ["openssl", "pkey", "-pubin", "-in", str(keys.public), "-outform", "DER"]
    der = subprocess.run(words, check=True, capture_output=True).stdout
    found = fingerprint(read_public(keys.public))
    assert found == hashlib.sha256(der).hexdigest()[:16]
    assert f"the key {found} is required" in refused(
        check_integrity, make_bundle(tmp_path), keys.public
    )
