"""The disk that runs are on: room, what the file system can do, and what dead runs left."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.doctor.finding import Finding

SMALLEST_DISK = 2_000_000_000  # bytes; an ImageNet-sized run wants more
_FEWEST_INODES = 10_000
_ELSEWHERE = "choose a folder on another disk with --runs DIR"
# Names of what `files.write` and `files.link` are about to rename, with the process that does it.
_HALF_WRITTEN = re.compile(r"^\..+\.(\d+)$")
_HOLDER = re.compile(r"^process (\d+) on (.+)$")


def disk(runs: Path) -> Iterator[Finding]:
    place = _nearest(runs)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free < SMALLEST_DISK:
        yield Finding("disk", "missing", found, "make room, or choose another disk with --runs")
    else:
        yield Finding("disk", "ok", found)
    inodes = os.statvfs(place)
    # Some file systems make them as they are needed, and say that they have none.
    if inodes.f_files and inodes.f_favail < _FEWEST_INODES:
        found = f"only {inodes.f_favail:,} more files fit at {place}"
        yield Finding("inodes", "warning", found, f"remove small files, or {_ELSEWHERE}")


def file_system(runs: Path) -> Iterator[Finding]:
    """Do once what every run does; all of it is taken away again."""
    place = _nearest(runs)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    except OSError as error:
        found = f"{place} cannot be written to ({error.strerror})"
        yield Finding("file system", "missing", found, _ELSEWHERE)
        return
    try:
        errors = {what: _error(tried, folder) for what, tried in _TRIALS.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [f"{what} ({error})" for what, error in errors.items() if error]
    if failed:
        found = f"{place} lacks {', '.join(failed)}"
        yield Finding("file system", "missing", found, _ELSEWHERE)
    else:
        yield Finding("file system", "ok", f"{', '.join(_TRIALS)} work at {place}")


def latest(runs: Path) -> Iterator[Finding]:
    link = runs / "latest"
    if not link.is_symlink() and not link.exists():
        yield Finding("latest run", "absent", f"none in {runs}", "advprune run")
    elif not link.exists():
        found = f"{link} points at {link.readlink()}, which is gone"
        yield Finding("latest run", "warning", found, f"rm {link}, or advprune run")
    else:
        yield Finding("latest run", "ok", str(link.resolve()))


def leftovers(runs: Path) -> Iterator[Finding]:
    """Stages that broke off, whose work can be gone on with, and files that serve nobody."""
    store = runs / "store"
    broken = [path for path in sorted(store.glob(".tmp-*")) if not _is_being_made(path)]
    stale = [path for path in sorted([*runs.glob(".*"), *store.glob(".*")]) if _is_stale(path)]
    if broken:
        size = sum(file.stat().st_size for path in broken for file in path.rglob("*"))
        found = f"{len(broken)} unfinished stages in {store}, {size / 1e6:,.1f} MB"
        remedy = f"the command that broke off goes on with them; or rm -r {store}/.tmp-*"
        yield Finding("unfinished", "warning", found, remedy)
    if stale:
        shown = " ".join(map(str, stale[:3])) + (" ..." if len(stale) > 3 else "")
        found = f"{len(stale)} files of processes that are gone"
        yield Finding("leftovers", "warning", found, f"rm {shown}")
    if not (broken or stale):
        yield Finding("leftovers", "ok", "none")


def _nearest(runs: Path) -> Path:
    """The folder of runs, or where it would be made."""
    return next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())


def _error(tried: Callable[[Path], None], folder: Path) -> str:
    try:
        tried(folder)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _locks(folder: Path) -> None:
    """Some network file systems grant every lock to everybody."""
    path = folder / "lock"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError("two got the same one")


def _renames(folder: Path) -> None:
    new, old = folder / "new", folder / "old"
    new.write_text("new")
    old.write_text("old")
    new.replace(old)
    if old.read_text() != "new":
        raise OSError("the old file is still there")


def _syncs(folder: Path) -> None:
    path = folder / "synced"
    path.touch()
    for place in (path, folder):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _links(folder: Path) -> None:
    (folder / "link").symlink_to("target")


_TRIALS = {"locks": _locks, "renaming": _renames, "flushing": _syncs, "links": _links}


def _is_being_made(temporary: Path) -> bool:
    guard = temporary.with_name(temporary.name.replace(".tmp-", ".lock-", 1))
    return guard.exists() and not _is_stale(guard)


def _is_stale(path: Path) -> bool:
    """Whether a lock or a half-written file names a process of this machine that is gone."""
    if written := _HALF_WRITTEN.match(path.name):
        return (path.is_symlink() or path.is_file()) and not _lives(int(written[1]))
    is_lock = path.name.startswith(".lock-") or path.name.endswith(".lock")
    if not is_lock or not path.is_file():
        return False
    holder = _HOLDER.match(path.read_text(errors="replace").strip())
    # A lock without a name was taken this moment, or by someone who had no time to write it.
    return bool(holder) and holder[2] == os.uname().nodename and not _lives(int(holder[1]))  # pyright: ignore


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
