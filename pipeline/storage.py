"""Artefacts in object storage, beside the store on this machine: what one makes, all others find.

Below the address, which may be any that fsspec reads and writes:

    sha256/DIGEST      the content of a file, once, whoever lists it
    store/NAME.json    the manifest of an artefact, written when all its files are there
    runs/RUN.json      the artefacts of a finished run
    layout.json        that it is laid out like this

Everything gets its name when it is whole, and what has a name is never written to: two who make the
same do not meet.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprune.errors import BadData, Incompatible, Refused, StorageFailed, Unavailable
from advprune.files import storage_refusal, write
from deploy.sealed import seal, unseal
from pipeline.stage import MANIFEST, Artifact, read_manifest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LARGEST = 8_000_000  # bytes of a manifest; one of a bundle with hundreds of files has a hundredth
_LAYOUT = {"layout": 1}
_CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z]+-[0-9a-f]{20}")  # of a folder of the store


class Storage:
    """One address, which answers and can be written to.

    Raises:
        Refused: no such protocol.
        Unavailable: the package that speaks it is missing.
        StorageFailed: it cannot be reached, or written to.
        Incompatible: it is laid out otherwise, by another version.
    """

    def __init__(self, url: str) -> None:
        self._shown = re.sub(r"//[^/@]*@", "//", url)  # a password is nobody's business
        self._files, self._root = _file_system(url, self._shown)
        layout = self._document("layout.json")
        if layout is None:
            self._put("layout.json", seal(_LAYOUT))
        elif layout != _LAYOUT:
            raise Incompatible(f"--storage {self._shown}: not laid out as {_LAYOUT}; give another")

    def fetch(self, name: str, folder: Path) -> bool:
        """Fill a new folder with an artefact, every file held against the manifest; False for none.

        Args:
            name: of its folder in a store: stage and key.

        Raises:
            BadData: a file is missing, is another than was listed, or its name leads out.
            StorageFailed: as it says.
        """
        path = f"store/{name}.json"
        content = self._small(path)
        if content is None:
            return False
        try:
            manifest = read_manifest(content)
            if f"{manifest.get('stage')}-{str(manifest.get('key'))[:20]}" != name:
                raise ValueError("it is of another artefact")
            folder.mkdir()
            write(folder / MANIFEST, content)
            for file, entry in manifest["files"].items():
                self._download(entry, folder / file)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and (refusal := storage_refusal(folder, error)):
                raise refusal from error
            raise BadData(
                f"{self._shown}/{path}: not an artefact ({error}); remove it there and run again"
            ) from error
        return True

    def send(self, artifact: Artifact) -> None:
        """Have an artefact there, too; its manifest last, so that half of it is nothing.

        Raises: BadData for a file that was changed since it was made; StorageFailed.
        """
        path = f"store/{artifact.path.name}.json"
        if self._has(path):
            return
        for name, entry in artifact.manifest["files"].items():
            if not self._has(content := f"sha256/{entry['sha256']}"):
                self._put(content, artifact.file(name))
        self._put(path, (artifact.path / MANIFEST).read_bytes())

    def run(self, run: str) -> dict[str, str] | None:
        """The artefacts of a finished run, as the names of their folders by stage; None for none.

        Raises: BadData, StorageFailed.
        """
        found = self._document(path := f"runs/{run}.json")
        if found is not None and not all(_NAME.fullmatch(str(name)) for name in found.values()):
            raise BadData(f"{self._shown}/{path}: no list of artefacts; remove it and run again")
        return found

    def send_run(self, run: str, names: Mapping[str, str]) -> None:
        """Say what a run consists of, all of which is there. Raises StorageFailed."""
        if not self._has(path := f"runs/{run}.json"):
            self._put(path, seal(names))

    def _download(self, entry: Mapping[str, Any], path: Path) -> None:
        """Raises ValueError for other content; FileExistsError where a name is there already."""
        digest, size = entry["sha256"], entry["bytes"]
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"unexpected digest of {path.name!r}")
        source = f"sha256/{digest}"
        about = self._about(source)
        if about is None or about["type"] != "file" or about.get("islink"):
            raise ValueError(f"{source}: missing, or a link")
        if about["size"] != size:
            raise ValueError(f"{source}: {about['size']} bytes, must be {size}")
        path.parent.mkdir(parents=True, exist_ok=True)
        seen, left = hashlib.sha256(), size
        with path.open("xb") as file:
            for chunk in self._chunks(source):
                left -= len(chunk)
                if left < 0:
                    break
                seen.update(chunk)
                file.write(chunk)
        if left or seen.hexdigest() != digest:
            raise ValueError(f"{source}: changed since it was made")

    def _small(self, path: str) -> bytes | None:
        """A document, None where there is none. Raises BadData for one too large to be one."""
        content = bytearray()
        if not self._has(path):
            return None
        for chunk in self._chunks(path):
            content += chunk
            if len(content) > LARGEST:
                raise BadData(f"{self._shown}/{path}: larger than {LARGEST:,} bytes; remove it")
        return bytes(content)

    def _document(self, path: str) -> dict[str, Any] | None:
        content = self._small(path)
        try:
            return None if content is None else unseal(content)
        except ValueError as error:
            raise BadData(f"{self._shown}/{path}: {error}; remove it and run again") from error

    def _has(self, path: str) -> bool:
        return self._about(path) is not None

    def _about(self, path: str) -> dict[str, Any] | None:
        """What the storage says of a file; fsspec's own `exists` takes any failure for a no."""
        with self._reached("read"):
            try:
                return self._files.info(f"{self._root}/{path}")
            except FileNotFoundError:
                return None

    def _chunks(self, path: str) -> Iterator[bytes]:
        with self._reached("read"), self._files.open(f"{self._root}/{path}", "rb") as file:
            while chunk := file.read(_CHUNK):
                yield bytes(chunk)  # pyright: ignore[reportArgumentType]

    def _put(self, path: str, content: bytes | Path) -> None:
        """Write beside the name, then rename: some file systems show what is half-written."""
        final = f"{self._root}/{path}"
        beside = f"{final}.{uuid.uuid4().hex}"
        with self._reached("write"):
            self._files.makedirs(final.rpartition("/")[0], exist_ok=True)
            if isinstance(content, bytes):
                self._files.pipe_file(beside, content)
            else:
                self._files.put_file(str(content), beside)
            self._files.mv(beside, final)

    @contextmanager
    def _reached(self, verb: str) -> Iterator[None]:
        """Whatever a protocol's package raises, it is the storage that failed."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageFailed(
                f"--storage {self._shown}: cannot {verb} ({reason}); nothing here is lost: the "
                "same command goes on when it answers, or without --storage"
            ) from error


def _file_system(url: str, shown: str) -> "tuple[AbstractFileSystem, str]":
    """What speaks the protocol of an address, and the path in its words."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise Unavailable(
            f"--storage {shown}: fsspec is missing; type: pip install 'advprune[storage]'"
        ) from None
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise Unavailable(
            f"--storage {shown}: the package of this protocol is missing ({reason}); install it "
            "with pip"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Refused(
            f"--storage {shown}: no address of a storage ({reason}); give one as s3://BUCKET/PATH"
        ) from error
    return files, root.rstrip("/")
