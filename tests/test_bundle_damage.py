"""Promise: a bundle that was damaged on its way is refused, wherever and however it was.

A thousand flipped bits for every kind of file, and every length that a file may have been cut to.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from signing_keys import Keys, make_keys

from deploy.bundle.archive import pack, unpack
from deploy.bundle.check import check_integrity
from deploy.errors import DeployError

FLIPS = 1000
KINDS = (
    "model.onnx",
    "golden.npz",
    "replay.npz",
    "labels.txt",
    "edge_verify.py",
    "model_card.md",
    "triton/linear/config.pbtxt",
    "manifest.json",
    "manifest.json.sig",
    "SHA256SUMS",
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bundle(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made"), keys.private)


def flips(content: bytes) -> Iterator[bytes]:
    """The content with one bit another, a thousand times, or once for every bit that there is."""
    bits = 8 * len(content)
    random = np.random.default_rng(0)
    for bit in random.choice(bits, min(FLIPS, bits), replace=False):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def cuts(content: bytes, step: int) -> Iterator[bytes]:
    """Every beginning of a multiple of `step` bytes, and those that lack little."""
    lengths = {*range(0, len(content), step), *range(max(0, len(content) - 8), len(content))}
    for length in sorted(lengths):
        yield content[:length]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except DeployError as refusal:
        return refusal.exit_code == 65 and len(str(refusal).splitlines()) == 1
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused(bundle: Path, keys: Keys, name: str, tmp_path: Path) -> None:
    """Also by those who have no key, but for the signature, which they do not read."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    key = keys.public if name == "manifest.json.sig" else None
    content = (copy / name).read_bytes()
    check_integrity(copy, key)
    tried = 0
    for damaged in (*flips(content), *cuts(content, 512)):
        (copy / name).write_bytes(damaged)
        assert is_refused(lambda: check_integrity(copy, key)), tried
        tried += 1
    assert tried > min(FLIPS, 8 * len(content))
    (copy / name).write_bytes(content)
    check_integrity(copy, key)


@pytest.mark.slow
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_damaged_archive_gives_the_bundle_or_nothing(
    bundle: Path, keys: Keys, signed: bool, tmp_path: Path
) -> None:
    """tar keeps times and owners of files that nothing here uses; the rest must hold."""
    source = Path(shutil.copytree(bundle, tmp_path / "source"))
    if not signed:
        (source / "manifest.json.sig").unlink()
    archive, out = tmp_path / "bundle.tar", tmp_path / "out"
    pack(source, archive)
    content = archive.read_bytes()
    refused = 0
    for damaged in (*flips(content), *cuts(content.rstrip(b"\0"), 512)):
        archive.write_bytes(damaged)
        if is_refused(lambda: unpack(archive, out, keys.public if signed else None)):
            refused += 1
        else:
            assert files(out) == files(source)
            shutil.rmtree(out)
        assert {path.name for path in tmp_path.iterdir()} == {"source", "bundle.tar"}
    assert refused > FLIPS / 2
