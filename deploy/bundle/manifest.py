"""Exactly which files a bundle is made of, found out before any of them is opened.

Three files stand outside the list: the manifest that holds it, its signature, and SHA256SUMS, which
says the same to `sha256sum --check`. Standard library only.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy import strict_json
from deploy.errors import DeployError
from deploy.files import sha256

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
SUMS = "SHA256SUMS"
SCHEMA = 2
LARGEST_MANIFEST = 1_000_000  # bytes, also of SHA256SUMS
LARGEST_SIGNATURE = 1000
LARGEST_FILE = 2**31  # an ONNX file cannot be larger
MOST_FILES = 1000
# Plain ASCII, so no two names look alike; none is hidden, leads upwards or starts an option.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LINE = re.compile(r"([0-9a-f]{64})  ([!-~]+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OUTSIDE = {MANIFEST: LARGEST_MANIFEST, SIGNATURE: LARGEST_SIGNATURE, SUMS: LARGEST_MANIFEST}


@dataclass(frozen=True)
class Entry:
    """One file: its digest, its size, and whether it may be run."""

    sha256: str
    bytes: int
    executable: bool


def entries_of(folder: Path) -> dict[str, Entry]:
    """What a manifest must say of the files that are there, by their path.

    Raises:
        DeployError: 65, something there is no plain file with a plain name.
    """
    return {
        name: _entry_of(status, sha256(folder / name))
        for name, status in _walk(folder)
        if name not in _OUTSIDE
    }


def write_manifest(folder: Path, content: Mapping[str, Any]) -> bytes:
    """The manifest of a folder, as bytes that depend on its content alone."""
    files = {name: asdict(entry) for name, entry in entries_of(folder).items()}
    full = {"schema": SCHEMA, **content, "files": files}
    return (json.dumps(full, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_outside(folder: Path, name: str) -> bytes:
    """The bytes of a file outside the list, from a plain file of bounded size.

    Raises:
        DeployError: 66, it is not there; 65, it is a link or too large.
    """
    path = folder / name
    try:
        status = path.lstat()
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}; give the folder of a bundle", 66) from error
    _check_plain(path, status, _OUTSIDE[name])
    return path.read_bytes()


def check_files(folder: Path, manifest: bytes) -> dict[str, Any]:
    """Hold a folder against its sums, then against its manifest; only then is that parsed.

    Args:
        manifest: what is in its manifest.json.

    Returns:
        The manifest.

    Raises:
        DeployError: 65, a file is missing, more, changed, no plain file, or not what is said of it.
    """
    present = dict(_walk(folder))
    sums = _sums(folder, read_outside(folder, SUMS))
    listed = {*sums, SUMS} | ({SIGNATURE} & set(present))
    stray = ", ".join(sorted(listed ^ set(present)))
    demand(not stray, f"{folder}: {stray} missing, or not listed in {SUMS}")
    demand(MANIFEST in sums, f"{folder}: {SUMS} does not list {MANIFEST}")
    for name, expected in sorted(sums.items()):
        found = hashlib.sha256(manifest).hexdigest() if name == MANIFEST else sha256(folder / name)
        demand(found == expected, f"{folder / name}: not the file that was bundled")
    content = parse(manifest, str(folder / MANIFEST))
    files: dict[str, Entry] = content["files"]
    for name in sorted({*present, *files} - {*_OUTSIDE}):
        found = _entry_of(present[name], sums[name]) if name in present else None
        same = found == files.get(name)
        demand(same, f"{folder / name}: other than {MANIFEST} says ({found}, {files.get(name)})")
    return content


def parse(manifest: bytes, where: str) -> dict[str, Any]:
    """A manifest whose bytes were found to be the right ones; its files as `Entry`.

    Raises:
        DeployError: 65, it is not a manifest of this schema.
    """
    try:
        content = strict_json.loads(manifest)
        _check_content(content)
        content["files"] = {name: _entry(entry) for name, entry in content["files"].items()}
        check_names(content["files"])
        for file in (*content["models"].values(), content["labels"], content["golden"]):
            if file not in content["files"]:
                raise ValueError(f"{file!r} is not among its files")
        if content.get("replay") not in {None, *content["files"]}:
            raise ValueError("its replay is not among its files")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DeployError(
            f"{where}: not a manifest of schema {SCHEMA} ({error}); fetch or build it again", 65
        ) from error
    return content


def check_names(names: Mapping[str, Any]) -> None:
    """Names that mean one file inside the folder, on every system.

    Raises:
        ValueError: one leads elsewhere, or two are one where case does not count.
    """
    if len(names) > MOST_FILES:
        raise ValueError(f"{len(names)} files, more than {MOST_FILES}")
    for name in names:
        path = PurePosixPath(name)
        if str(path) != name or not all(_PART.fullmatch(part) for part in path.parts):
            raise ValueError(f"file name {name!r}; use A-Z a-z 0-9 . _ - and start with none of .-")
    taken = {*names, *(str(parent) for name in names for parent in PurePosixPath(name).parents)}
    if len({name.casefold() for name in taken}) < len(taken) or set(names) & set(_OUTSIDE):
        raise ValueError("names clash: two differ in case alone, or one is the bundle's own")


def demand(holds: bool, otherwise: str) -> None:
    """Raises DeployError 65 with the way out, unless something holds."""
    if not holds:
        raise DeployError(f"{otherwise}; fetch or build it again", 65)


def _entry_of(status: os.stat_result, digest: str) -> Entry:
    return Entry(digest, status.st_size, bool(status.st_mode & 0o111))


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder by its path in it, in which nothing else is but their folders.

    Raises:
        DeployError: 65, there is a link, a device, an empty folder, or far too much.
    """
    waiting, count = [folder], 0
    while waiting:
        current = waiting.pop()
        inside = sorted(current.iterdir())
        demand(bool(inside), f"{current}: an empty folder, which no bundle has")
        for path in inside:
            count += 1
            demand(count <= 2 * MOST_FILES, f"{folder}: more than {MOST_FILES} files")
            plain = _PART.fullmatch(path.name) is not None
            demand(plain, f"{current}: holds {path.name!a}, which no bundle has")
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                _check_plain(path, status, LARGEST_FILE)
                yield path.relative_to(folder).as_posix(), status


def _check_plain(path: Path, status: os.stat_result, largest: int) -> None:
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    demand(plain, f"{path}: a link or no plain file")
    demand(not status.st_mode & 0o7000, f"{path}: has a set-user-ID, set-group-ID or sticky bit")
    demand(status.st_size <= largest, f"{path}: {status.st_size} bytes, above {largest}")


def _sums(folder: Path, content: bytes) -> dict[str, str]:
    """Name -> digest of SHA256SUMS, of which every line must be one of ours."""
    lines = content.decode("ascii", "replace").split("\n")
    matches = [_LINE.fullmatch(line) for line in lines[:-1]]
    sums = {match[2]: match[1] for match in matches if match}
    demand(
        lines[-1] == "" and len(sums) == len(matches),
        f"{folder}: {SUMS} has a line that is not a digest and a name of its own",
    )
    return sums


def _check_content(content: Any) -> None:
    """Raises ValueError, TypeError or LookupError where a manifest is not what is written."""
    wanted = {
        "schema",
        "name",
        "release",
        "input",
        "models",
        "labels",
        "golden",
        "metadata",
        "files",
    }
    optional = {"replay", "protocol", "runtime"}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"schema {content.get('schema')!r}")
    if not wanted <= set(content) <= wanted | optional:
        raise ValueError(f"holds {', '.join(sorted(content))}")
    for key in ("name", "labels", "golden", *({"replay", "runtime"} & set(content))):
        if not isinstance(content[key], str):
            raise TypeError(f"{key} {content[key]!r}")
    for key in ("input", "models", "metadata", "files", *({"protocol"} & set(content))):
        if not isinstance(content[key], dict):
            raise TypeError(f"{key} {content[key]!r}")
    shape = content["input"].get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int for n in shape):
        raise ValueError(f"input of shape {shape}")
    if type(content["release"]) is not int or content["release"] < 0 or not content["models"]:
        raise ValueError(f"release {content['release']!r} of {len(content['models'])} models")
    if ("replay" in content) != ("protocol" in content):
        raise ValueError("a replay and its protocol go together")


def _entry(entry: Any) -> Entry:
    if set(entry) != {"sha256", "bytes", "executable"}:
        raise ValueError(f"an entry holds {', '.join(entry)}")
    found = Entry(**entry)
    kinds = [type(value) for value in asdict(found).values()]
    if kinds != [str, int, bool] or not _DIGEST.fullmatch(found.sha256) or found.bytes < 0:
        raise ValueError(f"entry {entry}")
    return found
