"""A folder that exists is complete; nothing is made twice, and nothing is left behind."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors import SafetensorError

from advprune.errors import BadData, Busy, CannotCreate, NotFound, Refused, StorageFailed
from advprune.files import write
from deploy.errors import DeployError
from deploy.sealed import seal, unseal
from deploy.verdicts import canonical
from pipeline import files
from pipeline.files import link, lock, needed_folder, storage_errors
from pipeline.recipe import Recipe
from pipeline.stage import MANIFEST, Artifact, Context, Metrics, Stage, read_artifact
from pipeline.store import CHECKPOINT, Store, open_run
from pipeline.watch import Silent

Run = Callable[[Context], Metrics]
SAVED = f"{CHECKPOINT}000000007"


def writes(text: str = "x", name: str = "out.txt", **metrics: float) -> Run:
    def run(context: Context) -> Metrics:
        (context.out / name).write_text(text)
        return cast(Metrics, metrics)

    return run


def make_stage(
    run: Run | None = None,
    name: str = "s",
    needs: tuple[str, ...] = (),
    config: Mapping[str, Any] | None = None,
    version: int = 1,
) -> Stage:
    return Stage(name, needs, config or {}, run or writes(), version)


def build(store: Store, stage: Stage, **parents: Artifact) -> Artifact:
    def context(out: Path) -> Context:
        return Context(Recipe(), parents, out, Silent())

    return store.build(stage, parents, context, {"python": "3"})


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Keys -------------------------------------------------------------------------------------------


def test_a_key_changes_with_settings_version_and_contents_of_parents(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = build(store, make_stage(name="p"))
    base = make_stage(needs=("p",), config={"a": 1, "b": {"c": [1, 2]}})
    key = base.key({"p": parent})
    others = [
        make_stage(name="t", needs=("p",), config=base.config).key({"p": parent}),
        make_stage(needs=("p",), config=base.config, version=2).key({"p": parent}),
        make_stage(needs=("p",), config={"a": 2, "b": {"c": [1, 2]}}).key({"p": parent}),
        make_stage(needs=("p",), config={"a": 1, "b": {"c": [2, 1]}}).key({"p": parent}),
        make_stage(needs=("p",), config={"a": 1}).key({"p": parent}),
        make_stage(config=base.config).key({}),
    ]
    for number, run in enumerate((writes("y"), writes("x", "other.txt"))):
        other = build(store, make_stage(run, name="p", version=number + 2))
        others.append(base.key({"p": other}))
    assert len({key, *others}) == 1 + len(others)


def test_a_key_does_not_change_with_anything_else(tmp_path: Path) -> None:
    parent = build(Store(tmp_path / "here"), make_stage(name="p"))
    # Another place, another stage, other settings, metrics and times: the same file came out.
    same = build(
        Store(tmp_path / "there"),
        make_stage(writes(loss=0.5), name="q", config={"z": 1}, version=7),
    )
    base = make_stage(needs=("p",), config={"a": 1, "b": 2})
    shuffled = make_stage(writes("never run"), needs=("p",), config={"b": 2, "a": 1})
    key = base.key({"p": parent})
    assert key == shuffled.key({"p": same, "unrelated": parent})
    expected = {
        "stage": "s",
        "version": 1,
        "config": {"a": 1, "b": 2},
        "parents": {"p": parent.digest},
    }
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert key == hashlib.sha256(text.encode()).hexdigest()


def test_a_setting_that_is_no_number_cannot_be_a_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"eps": float("nan")})


# Building ---------------------------------------------------------------------------------------


def test_an_artefact_is_a_folder_of_files_with_their_true_digests(tmp_path: Path) -> None:
    def run(context: Context) -> Metrics:
        (context.out / "deep").mkdir()
        (context.out / "deep" / "a.bin").write_bytes(b"\0\1")
        (context.out / "b.txt").write_text("b")
        (context.out / SAVED).write_text("only serves the making")
        return {"loss": 0.5}

    store = Store(tmp_path)
    parent = build(store, make_stage(name="p"))
    stage = make_stage(run, needs=("p",), config={"a": 1})
    made = build(store, stage, p=parent)
    assert made.path == tmp_path / "store" / f"s-{stage.key({'p': parent})[:20]}"
    manifest = json.loads((made.path / MANIFEST).read_text())
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        "b.txt": hashlib.sha256(b"b").hexdigest(),
        "deep/a.bin": hashlib.sha256(b"\0\1").hexdigest(),
    }
    assert manifest["files"]["deep/a.bin"]["bytes"] == 2
    assert manifest["parents"] == {"p": parent.digest}
    assert manifest["config"] == {"a": 1}
    assert manifest["environment"] == {"python": "3"}
    assert made.metrics == {"loss": 0.5}
    assert made.check() == made.path
    # No lock, no temporary folder, no checkpoint.
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted(
        [made.path.name, parent.path.name]
    )
    assert everything(made.path) == ["b.txt", "deep", "deep/a.bin", MANIFEST]


def test_what_is_there_is_found_and_not_made_again(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def run(context: Context) -> Metrics:
        calls.append(1)
        return writes()(context)

    stage = make_stage(run)
    assert store.find(stage, {}) is None
    made = build(store, stage)
    assert store.find(stage, {}) == made
    assert build(store, stage) == made  # as when another process was faster
    assert len(calls) == 1


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), MemoryError()])
def test_a_stage_that_breaks_off_is_not_finished_and_goes_on_later(
    tmp_path: Path, error: BaseException
) -> None:
    store, seen = Store(tmp_path / "runs"), []

    def run(context: Context) -> Metrics:
        seen.append(everything(context.out))
        (context.out / SAVED).write_text("epoch 1")
        (context.out / "half").mkdir()
        (context.out / "half" / "file").write_text("to")
        (context.out / "out.txt").write_text("half")
        if len(seen) == 1:
            raise error
        (context.out / "half" / "file").unlink()
        (context.out / "half").rmdir()
        return writes("whole")(context)

    stage = make_stage(run)
    with pytest.raises(type(error)):
        build(store, stage)
    assert store.find(stage, {}) is None
    made = build(store, stage)
    # The second attempt met the checkpoint and nothing else of the first.
    assert seen == [[], [SAVED]]
    assert everything(made.path) == [MANIFEST, "out.txt"]
    assert made.file("out.txt").read_text() == "whole"
    assert everything(tmp_path / "runs" / "store") == sorted(
        [made.path.name, f"{made.path.name}/{MANIFEST}", f"{made.path.name}/out.txt"]
    )


@pytest.mark.parametrize(
    "error", [Refused("no"), BadData("no"), DeployError("no", 12)], ids=lambda e: type(e).__name__
)
def test_a_stage_that_is_refused_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def run(context: Context) -> Metrics:
        (context.out / "half").write_text("")
        raise error

    store = Store(tmp_path / "some" / "runs")
    with pytest.raises(type(error)), needed_folder(store.root):
        build(store, make_stage(run))
    assert everything(tmp_path) == []

    parent = build(store, make_stage(name="p"))
    before = everything(tmp_path)
    with pytest.raises(type(error)):
        build(store, make_stage(run, needs=("p",)), p=parent)
    assert everything(tmp_path) == before


CHILD = """
import os, sys
from pathlib import Path
from pipeline.stage import Stage
from pipeline.store import CHECKPOINT, Store

class Context:
    def __init__(self, out): self.out = out

def run(context):
    checkpoint = context.out / f"{CHECKPOINT}000000007"
    epoch = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if len(sys.argv) > 2:
        checkpoint.write_text(str(epoch + 1))
        (context.out / "out.txt").write_text("half")
        if sys.argv[2] == "exit":
            os._exit(9)
        print("ready", flush=True)
        sys.stdin.read()
    (context.out / "out.txt").write_text(f"whole after {epoch} epochs")
    return {}

Store(Path(sys.argv[1])).build(Stage("s", (), {}, run), {}, Context, {})
"""


def test_a_process_that_vanishes_is_carried_on_by_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), "exit"], check=False)
        assert child.returncode == 9
    store, stage = Store(tmp_path), make_stage()
    assert store.find(stage, {}) is None
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
    made = store.find(stage, {})
    assert made is not None
    assert made.file("out.txt").read_text() == "whole after 2 epochs"
    assert everything(made.path) == [MANIFEST, "out.txt"]
    assert [path.name for path in (tmp_path / "store").iterdir()] == [made.path.name]


def test_two_processes_do_not_make_the_same_thing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        started = time.monotonic()
        with pytest.raises(Busy, match=f"in use by process {child.pid} on ") as refusal:
            build(Store(tmp_path), make_stage())
        assert time.monotonic() - started < 1
        assert refusal.value.exit_code == 75
        child.communicate(b"")
    assert child.returncode == 0
    found = Store(tmp_path).find(make_stage(), {})
    assert found is not None
    assert found.file("out.txt").read_text() == "whole after 0 epochs"


# Reading ----------------------------------------------------------------------------------------


def test_a_file_that_was_changed_or_removed_is_refused_by_name(tmp_path: Path) -> None:
    made = build(Store(tmp_path), make_stage(writes("abc")))
    path = made.path / "out.txt"
    for damage in (lambda: path.write_text("abd"), lambda: path.write_text(""), path.unlink):
        damage()
        for use in (lambda: made.file("out.txt"), made.check):
            with pytest.raises(BadData, match=r"out\.txt: missing or changed.*remove .* again"):
                use()
    path.write_text("abc")
    assert made.file("out.txt") == path
    with pytest.raises(NotFound, match="lists no 'other'"):
        made.file("other")


def edited(made: Artifact, **changes: Any) -> Path:
    manifest = unseal((made.path / MANIFEST).read_bytes()) | changes
    (made.path / MANIFEST).write_bytes(seal(manifest))
    return made.path


@pytest.mark.parametrize(
    "files",
    [
        {"../out.txt": {"sha256": "0", "bytes": 1}},
        {"a/../../out.txt": {"sha256": "0", "bytes": 1}},
        {"/etc/passwd": {"sha256": "0", "bytes": 1}},
        {"out.txt": {"bytes": 1}},
        {"out.txt": {"sha256": 3}},
        {"out.txt": "0"},
        {"out.txt": None},
        ["out.txt"],
        "out.txt",
        None,
    ],
)
def test_a_manifest_with_strange_files_is_refused(tmp_path: Path, files: Any) -> None:
    path = edited(build(Store(tmp_path), make_stage()), files=files)
    with pytest.raises(BadData, match=r"manifest\.json: not a manifest .*remove "):
        read_artifact(path)
    with pytest.raises(BadData, match="not a manifest"):
        Store(tmp_path).find(make_stage(), {})


@pytest.mark.parametrize("changes", [{"metrics": 3}, {"seconds": "1"}, {"config": None}])
def test_a_manifest_of_other_kinds_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = edited(build(Store(tmp_path), make_stage()), **changes)
    with pytest.raises(BadData, match=rf"not a manifest \({next(iter(changes))} must be"):
        read_artifact(path)


def test_a_name_that_no_file_system_takes_is_of_no_file(tmp_path: Path) -> None:
    files = {"x" * 300: {"sha256": "0" * 64}}
    made = read_artifact(edited(build(Store(tmp_path), make_stage()), files=files))
    for use in (made.file, made.read):
        with pytest.raises(BadData, match="missing or changed"):
            use("x" * 300)


def test_a_file_too_many_or_a_link_in_an_artefact_is_noticed(tmp_path: Path) -> None:
    made = build(Store(tmp_path / "runs"), make_stage(writes("abc")))
    (tmp_path / "out.txt").write_text("abc")
    extra = made.path / "deep" / "extra"
    extra.parent.mkdir()
    extra.write_text("")
    with pytest.raises(BadData, match=r"deep/extra: a link, or not listed in manifest\.json"):
        made.check()
    extra.unlink()
    assert made.check() == made.path
    assert made.read("out.txt") == b"abc"
    for name in ("out.txt", MANIFEST, "deep/folder"):
        path = made.path / name
        content = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path if content is None else tmp_path / "out.txt")
        with pytest.raises(BadData, match="a link, or not listed"):
            made.check()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    (made.path / "out.txt").unlink()
    (made.path / "out.txt").symlink_to(tmp_path / "out.txt")  # the right content, elsewhere
    for use in (made.file, made.read):
        with pytest.raises(BadData, match="missing or changed"):
            use("out.txt")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"files": {}, "metrics": 3}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadData, match="not a manifest"):
        read_artifact(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadData, match="No such file"):
        read_artifact(tmp_path)


# Publishing -------------------------------------------------------------------------------------


def test_a_run_is_numbered_links_and_latest_points_to_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = [f"stage{number}" for number in range(11)]
    made = {name: build(store, make_stage(writes(name), name=name)) for name in names}
    for run in ("first", "second", "second"):
        folder = store.publish(run, made)
        assert (tmp_path / "latest").resolve() == folder.resolve()
    # Sorted by name, the links are in order; each is relative, so that the folder can move.
    links = sorted((tmp_path / "second").iterdir())
    assert [path.name.partition("_")[2] for path in links] == names
    assert all(not path.readlink().is_absolute() for path in (*links, tmp_path / "latest"))
    assert open_run(tmp_path / "latest") == {
        name: Artifact(a.path.resolve(), a.manifest) for name, a in made.items()
    }
    assert list(open_run(tmp_path / "latest")) == names


def test_what_is_no_run_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFound, match=r"not a finished run.*advprune run"):
            open_run(path)
    (tmp_path / "00_data").symlink_to(tmp_path / "gone")
    with pytest.raises(BadData, match="gone"):
        open_run(tmp_path)


def test_a_link_replaces_a_link_but_not_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        link(tmp_path / "l", tmp_path / name)
        assert (tmp_path / "l").readlink() == Path(name)
    with pytest.raises(CannotCreate, match="is a folder, must become a link"):
        link(tmp_path / "a", tmp_path / "b")


# The disk ---------------------------------------------------------------------------------------


def test_a_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        StorageFailed, match=r"broken disk\); 3 bytes are needed, [0-9,]+ bytes are free"
    ):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageFailed, "bytes are free"),
        (OSError(errno.EFBIG, "File too large"), StorageFailed, "bytes are free"),
        (OSError(errno.EIO, "Input/output error"), StorageFailed, "bytes are free"),
        (SafetensorError("I/O error: full (os error 28)"), StorageFailed, "os error 28"),
        (OSError(errno.EROFS, "Read-only file system"), CannotCreate, "Read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), CannotCreate, "not writable"),
        (OSError(errno.ENOENT, "other"), OSError, "other"),
        (SafetensorError("no header"), SafetensorError, "no header"),
    ],
)
def test_failures_of_the_disk_become_one_line(
    tmp_path: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as refusal, storage_errors(tmp_path / "runs"):
        raise error
    if isinstance(refusal.value, Refused):
        assert refusal.value.exit_code == {StorageFailed: 74, CannotCreate: 73}[kind]
        assert "--runs DIR" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_target_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(CannotCreate, match="cannot be created") as refusal, needed_folder(path):
            pass
        assert refusal.value.exit_code == 73
    # A disk that is mounted read-only denies even root, which permissions do not.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CannotCreate, match="not writable"), needed_folder(tmp_path / "runs"):
        pass
    assert everything(tmp_path) == ["file"]


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with needed_folder(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b" / "c").is_dir()
        (tmp_path / "a" / "file").write_text("")
    assert everything(tmp_path) == ["a", "a/file"]
    (tmp_path / "mine").mkdir()
    with needed_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_lock_goes_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with lock(path, "it"):
        assert f"process {os.getpid()} on " in path.read_text()
        with pytest.raises(Busy, match=f"it: in use by process {os.getpid()}"), lock(path, "it"):
            pass
    assert not path.exists()

    # Removed by its holder just after we opened it: that lock would keep nobody out.
    opened, flock = [], fcntl.flock

    def remove_first(file: Any, operation: int) -> None:
        opened.append(file)
        if len(opened) == 1:
            path.unlink()
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", remove_first)
    with lock(path, "it"):
        assert path.exists()
    assert len(opened) == 2
    assert opened[0].closed
