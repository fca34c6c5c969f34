"""An archive gives back the very bundle that was packed, or nothing at all."""

import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from signing_keys import Keys, make_keys

from deploy.bundle import sparse
from deploy.bundle.archive import pack, unpack
from deploy.bundle.check import check_integrity
from deploy.errors import DeployError

Members = list[tuple[tarfile.TarInfo, bytes]]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


@given(st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=4)), max_size=20))
def test_sparse_bytes_come_back(runs: list[tuple[int, bytes]]) -> None:
    content = b"".join(bytes(zeros) + data for zeros, data in runs)
    assert sparse.unpack(sparse.pack(content), len(content)) == content


@pytest.mark.parametrize("zeros", [0, 253, 254, 255, 256, 509, 510, 511, 765])
def test_every_distance_comes_back(zeros: int) -> None:
    content = bytes(zeros) + b"a" + bytes(zeros) + b"b" + bytes(zeros)
    assert sparse.unpack(sparse.pack(content), len(content)) == content


def test_sparse_bytes_come_near_their_entropy() -> None:
    """One byte in a hundred, with values as a layer in 8 bits has them."""
    random = np.random.default_rng(0)
    content = np.zeros(2_000_000, np.uint8)
    places = random.choice(len(content), len(content) // 100, replace=False)
    content[places] = random.integers(1, 256, len(places))
    packed = sparse.pack(content.tobytes())
    share = 0.01
    places_bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    entropy = len(content) * (places_bits + share * np.log2(255)) / 8
    assert entropy < len(packed) < 1.03 * entropy
    assert len(packed) < 0.95 * len(lzma.compress(content.tobytes(), preset=9))


def test_bytes_of_another_size_are_refused() -> None:
    content = bytes(300) + b"abc" + bytes(5)
    packed = sparse.pack(content)
    for size in (0, 10, 302):
        with pytest.raises(ValueError, match=r"beyond|at most"):
            sparse.unpack(packed, size)
    for broken in (b"", packed[:7], packed[:-1], packed + b"x", bytes(8) + packed, packed[8:]):
        with pytest.raises(ValueError, match=r"xz stream|differ"):
            sparse.unpack(broken, len(content))


def test_a_bundle_comes_back(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    sizes = pack(bundle, tmp_path / "bundle.tar")
    unpack(tmp_path / "bundle.tar", tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == files(bundle)
    assert sizes.keys() == files(bundle).keys()
    assert sum(sizes.values()) < (tmp_path / "bundle.tar").stat().st_size
    pack(tmp_path / "unpacked", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "bundle.tar").read_bytes()


def test_a_signed_bundle_comes_back_signed(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    bundle = make_bundle(tmp_path, keys.private)
    pack(bundle, tmp_path / "bundle.tar")
    unpack(tmp_path / "bundle.tar", tmp_path / "unpacked", keys.public, release=3)
    check_integrity(tmp_path / "unpacked", keys.public)
    assert files(tmp_path / "unpacked") == files(bundle)


def test_other_tools_read_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    pack(bundle, tmp_path / "bundle.tar")
    with tarfile.open(tmp_path / "bundle.tar") as tar:
        assert tar.getnames()[0] == "manifest.json"
        member = tar.extractfile("labels.txt.xz")
        assert member is not None
        assert lzma.decompress(member.read()) == (bundle / "labels.txt").read_bytes()


def refused(archive: Path, code: int = 65, keys: Keys | None = None, release: int = 0) -> str:
    """The refusal, which leaves nothing behind, inside the folder or beside it."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DeployError) as refusal:
        unpack(archive, archive.parent / "unpacked", keys and keys.public, release)
    assert refusal.value.exit_code == code
    assert sorted(archive.parent.rglob("*")) == before
    assert str(refusal.value).isprintable()
    return str(refusal.value)


def test_what_is_not_wanted_is_refused(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    pack(make_bundle(tmp_path / "plain"), tmp_path / "plain.tar")
    assert "not signed, and the key" in refused(tmp_path / "plain.tar", keys=keys)
    assert "release 3" in refused(tmp_path / "plain.tar", 78, release=4)
    pack(make_bundle(tmp_path / "signed", keys.private), tmp_path / "signed.tar")
    other = make_keys(tmp_path, "ecdsa")
    assert "no signature" in refused(tmp_path / "signed.tar", keys=other)
    refused(tmp_path / "absent.tar", 66)
    (tmp_path / "unpacked").mkdir()
    assert "exists already" in refused(tmp_path / "plain.tar", 73)


def test_only_a_bundle_that_holds_is_packed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "labels.txt").write_text("other\n")
    with pytest.raises(DeployError, match="not the file that was bundled"):
        pack(bundle, tmp_path / "bundle.tar")
    assert not (tmp_path / "bundle.tar").exists()


# Archives that a stranger made -------------------------------------------------------------------


def _member(name: str, content: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    return member, content


def _named(members: Members, name: str) -> int:
    return [member.name for member, _ in members].index(name)


def _renamed(name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[_named(members, "labels.txt.xz")][0].name = name

    return change


def _replaced(name: str, content: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[_named(members, name)] = _member(name, content)

    return change


def _added(name: str, content: bytes = b"", **changes: object) -> Callable[[Members], None]:
    return lambda members: members.append(_member(name, content, **changes))


HOSTILE: dict[str, Callable[[Members], object]] = {
    "a path that leads out": _renamed("../labels.txt.xz"),
    "a path that leads far out": _renamed("../../../../tmp/labels.txt.xz"),
    "an absolute path": _renamed("/tmp/labels.txt.xz"),
    "a path through the folder": _renamed("triton/../labels.txt.xz"),
    "a path with a dot": _renamed("./labels.txt.xz"),
    "a name that is not known": _renamed("labels.tx.xz"),
    "a name without its packing": _renamed("labels.txt"),
    "another packing": _renamed("labels.txt.sparse"),
    "a hidden file more": _added(".bashrc.xz", lzma.compress(b"x")),
    "a file more": _added("more.txt.xz", lzma.compress(b"x")),
    "a file twice": lambda m: m.append(m[_named(m, "labels.txt.xz")]),
    "the manifest twice": lambda m: m.append(m[0]),
    "sums again": _added("SHA256SUMS", b"x"),
    "no sums": lambda m: m.pop(_named(m, "SHA256SUMS")),
    "other sums": _replaced("SHA256SUMS", b"x"),
    "a link": _added("labels.txt.xz", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": _added("labels.txt.xz", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a device": _added("labels.txt.xz", type=tarfile.CHRTYPE),
    "a pipe": _added("labels.txt.xz", type=tarfile.FIFOTYPE),
    "a folder": _added("triton", type=tarfile.DIRTYPE),
    "a sparse file": _added("labels.txt.xz", type=tarfile.GNUTYPE_SPARSE),
    "a file less": lambda m: m.pop(_named(m, "labels.txt.xz")),
    "no manifest": lambda m: m.pop(0),
    "the manifest last": lambda m: m.append(m.pop(0)),
    "no members": lambda m: m.clear(),
    "a manifest that is none": _replaced("manifest.json", b"{}"),
    "a manifest of 2 MB": _replaced("manifest.json", bytes(2_000_000)),
    "other labels": _replaced("labels.txt.xz", lzma.compress(b"other\n" * 10)),
    "a bomb": _replaced("labels.txt.xz", lzma.compress(bytes(100_000_000))),
    "labels of 5 MB": _replaced("labels.txt.xz", bytes(5_000_000)),
    "labels that do not decompress": _replaced("labels.txt.xz", b"\xfd7zXZ\x00" + bytes(40)),
    "two streams": lambda m: _replaced(
        "labels.txt.xz", m[_named(m, "labels.txt.xz")][1] + lzma.compress(b"x")
    )(m),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(make_bundle(folder), folder / "bundle.tar")
    return folder / "bundle.tar"


def rewritten(source: Path, change: Callable[[Members], object], path: Path) -> Path:
    """A copy of an archive, its members changed."""
    with tarfile.open(source) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # pyright: ignore
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            # Sizes of what is no plain file must stay: tarfile would write nothing of it.
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def test_rewriting_alone_changes_nothing(packed: Path, tmp_path: Path) -> None:
    unpack(rewritten(packed, lambda members: None, tmp_path / "x.tar"), tmp_path / "unpacked")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_leaves_nothing(packed: Path, tmp_path: Path, what: str) -> None:
    refused(rewritten(packed, HOSTILE[what], tmp_path / "x.tar"))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_an_archive_that_ends_early_leaves_nothing(
    packed: Path, tmp_path: Path, share: float
) -> None:
    content = packed.read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    refused(tmp_path / "x.tar")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for content in (b"x" * 2000, lzma.compress(b"x"), b"PK\x03\x04" + bytes(600)):
        (tmp_path / "x.tar").write_bytes(content)
        refused(tmp_path / "x.tar")


def test_a_flipped_bit_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    """Of names, sizes or contents; what tar keeps for itself (times, owners) is never used."""
    content = packed.read_bytes()
    with tarfile.open(packed) as tar:
        spans = [(member.offset_data, member.size) for member in tar]
    random = np.random.default_rng(0)
    for start, size in spans:
        for place in random.integers(start, start + size, 6):
            changed = bytearray(content)
            changed[place] ^= 1 << int(random.integers(8))
            (tmp_path / "x.tar").write_bytes(changed)
            refused(tmp_path / "x.tar")
