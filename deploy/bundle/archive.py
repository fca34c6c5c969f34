"""A bundle in one file for the way: a plain tar whose members are compressed one by one.

The manifest, its signature and SHA256SUMS come first and as they are, so a receiver knows of every
other member how large it is and which bytes it must hold before decompressing any.
"""

import hashlib
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from deploy.bundle import sparse
from deploy.bundle.check import check_integrity, check_release, check_signature
from deploy.bundle.manifest import (
    LARGEST_MANIFEST,
    LARGEST_SIGNATURE,
    MANIFEST,
    SIGNATURE,
    SUMS,
    Entry,
    demand,
    parse,
)
from deploy.errors import DeployError
from deploy.files import demand_absent, whole_folder, write_atomic

SUFFIX = ".tar"
_XZ, _SPARSE = ".xz", ".sparse"
# What a member ends in -> its content, of what was packed and the size that it must have.
_UNPACK = {_XZ: sparse.decompress, _SPARSE: sparse.unpack}
_LARGEST = 2**31  # bytes of an archive
_OVERHEAD = 1000  # bytes by which what cannot be compressed may grow, besides a hundredth


def pack(folder: Path, archive: Path) -> dict[str, int]:
    """Write an archive of a bundle; equal bundles give equal bytes.

    Args:
        archive: to be written; must not exist.

    Returns:
        Path in the bundle -> bytes that it takes in the archive.

    Raises:
        DeployError: 65 or 66, `folder` is not a bundle that holds; 73, the archive exists or cannot
            be created; 74, it cannot be written.
    """
    manifest = check_integrity(folder)
    demand_absent(archive)
    first = [name for name in (MANIFEST, SIGNATURE, SUMS) if (folder / name).exists()]
    buffer, sizes = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in [*first, *sorted(manifest["files"])]:
            content = (folder / name).read_bytes()
            suffix, packed = ("", content) if name in first else _smallest(content)
            member = tarfile.TarInfo(name + suffix)
            member.size = sizes[name] = len(packed)
            tar.addfile(member, io.BytesIO(packed))
    write_atomic(archive, buffer.getvalue())
    return sizes


def unpack(
    archive: Path, folder: Path, key: Path | None = None, release: int = 0
) -> dict[str, Any]:
    """Make a bundle of an archive, with its integrity checked: completely, or not at all.

    Args:
        folder: to be made; must not exist.
        key, release: as for `check_bundle`.

    Returns:
        The manifest, as `check_integrity` found it.

    Raises:
        DeployError: 65, anything is off; 66, there is no archive; 73, the folder exists or cannot
            be created; 74, a write failed; 69 and 78 as `check_bundle`.
    """
    try:
        file = archive.open("rb")
    except OSError as error:
        raise DeployError(f"{archive}: {error.strerror}; give an archive", 66) from error
    with file, whole_folder(folder) as draft:
        size = file.seek(0, io.SEEK_END)
        demand(size <= _LARGEST, f"{archive}: {size} bytes, above {_LARGEST}")
        file.seek(0)
        try:
            _unpack(file, archive, draft, key, release)
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise DeployError(
                f"{archive}: not an archive of a bundle ({error}); fetch it again", 65
            ) from error
        return check_integrity(draft, key, release)


def _unpack(file: BinaryIO, archive: Path, draft: Path, key: Path | None, release: int) -> None:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        member = tar.next()
        begins = member is not None and member.name == MANIFEST
        demand(begins, f"{archive}: does not begin with {MANIFEST}")
        content = _read(tar, member, LARGEST_MANIFEST)
        write_atomic(draft / MANIFEST, content)
        member = tar.next()
        if member is not None and member.name == SIGNATURE:
            write_atomic(draft / SIGNATURE, _read(tar, member, LARGEST_SIGNATURE))
            member = tar.next()
        if key is not None:
            check_signature(draft, content, key)
        demand(member is not None and member.name == SUMS, f"{archive}: lacks {SUMS}")
        write_atomic(draft / SUMS, _read(tar, member, LARGEST_MANIFEST))
        member = tar.next()
        manifest = parse(content, f"{archive}: {MANIFEST}")
        check_release(manifest, release, archive)
        waiting: dict[str, Entry] = dict(manifest["files"])
        while member is not None:
            name, suffix = _split(member.name)
            known = name in waiting
            demand(known, f"{archive}: {member.name!r} is not in {MANIFEST}, or comes twice")
            entry = waiting.pop(name)
            packed = _read(tar, member, entry.bytes + entry.bytes // 100 + _OVERHEAD)
            _put(draft / name, packed, suffix, entry)
            member = tar.next()
    demand(not waiting, f"{archive}: lacks {', '.join(sorted(waiting))}")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo | None, largest: int) -> bytes:
    """The bytes of a plain file of bounded size; nothing else is ever written."""
    if member is None or member.type != tarfile.REGTYPE or member.pax_headers or tar.pax_headers:
        raise ValueError("a member is no plain file")
    if member.size > largest:
        raise ValueError(f"{member.name!r} takes {member.size} bytes, above {largest}")
    content = tar.extractfile(member)
    assert content is not None  # as it is a plain file
    return content.read()  # all of it, or tarfile refuses


def _split(name: str) -> tuple[str, str]:
    for suffix in _UNPACK:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _put(path: Path, packed: bytes, suffix: str, entry: Entry) -> None:
    """Write what was packed, of which size and digest are known."""
    if suffix not in _UNPACK:
        raise ValueError(f"{path.name} is not compressed")
    content = _UNPACK[suffix](packed, entry.bytes)
    same = hashlib.sha256(content).hexdigest() == entry.sha256
    demand(same, f"{path}: not the file that was bundled")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    path.chmod(0o755 if entry.executable else 0o644)


def _smallest(content: bytes) -> tuple[str, bytes]:
    plain = lzma.compress(content, preset=6)
    if 2 * content.count(0) < len(content):
        return _XZ, plain
    return min((_XZ, plain), (_SPARSE, sparse.pack(content)), key=lambda packed: len(packed[1]))
