"""Promise: what one machine made another finds, whole or not at all, and nothing here is lost."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sweeping import REPORT, program
from test_store import SAVED, build, everything, make_stage, writes
from tiny_run import TINY, Tiny, advprune, refusal

from advprune.errors import BadData, Incompatible, Refused, StorageFailed
from deploy.sealed import seal, unseal
from pipeline.commands import sweep as command
from pipeline.stage import MANIFEST, Artifact
from pipeline.storage import Storage
from pipeline.store import Store

pytest_plugins = ["tiny_fixtures"]


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/there" if request.param == "file" else "memory://there"
    fsspec.filesystem("memory").store.clear()


def stores(url: str, tmp_path: Path) -> tuple[Store, Store]:
    """Two machines with one storage."""
    return tuple(Store(tmp_path / name, Storage(url)) for name in ("one", "two"))  # pyright: ignore


def made(store: Store) -> Artifact:
    """An artefact with files in folders, also in the storage."""

    def run(context: Any) -> Any:
        (context.out / "deep" / "er").mkdir(parents=True)
        (context.out / "deep" / "er" / "a.bin").write_bytes(b"\0\1" * 3)
        (context.out / "b.bin").write_bytes(b"\0\1" * 3)
        return writes("text")(context)

    artifact = build(store, make_stage(run))
    store.share(artifact)
    return artifact


def objects(url: str) -> dict[str, bytes]:
    """All that is there, by its path below the address."""
    files, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


# There and back -----------------------------------------------------------------------------------


def test_another_machine_finds_the_same_bytes(url: str, tmp_path: Path) -> None:
    one, two = stores(url, tmp_path)
    artifact = made(one)
    found = two.find(make_stage(), {})
    assert found is not None and found.digest == artifact.digest
    assert found.check() == found.path
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    for name in [*artifact.manifest["files"], MANIFEST]:
        assert (found.path / name).read_bytes() == (artifact.path / name).read_bytes()


def test_what_is_not_there_is_not_found_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    _, two = stores(url, tmp_path)
    assert two.find(make_stage(), {}) is None
    assert not (tmp_path / "two").exists()


def test_content_is_there_once_and_the_manifest_comes_last(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put = Storage._put
    monkeypatch.setattr(
        Storage, "_put", lambda self, path, content: (order.append(path), put(self, path, content))
    )
    artifact = made(stores(url, tmp_path)[0])
    assert order[0] == "layout.json" and order[-1] == f"store/{artifact.path.name}.json"
    assert len(order) == 2 + 2  # of three files two are equal
    assert sorted(objects(url)) == sorted(order)


def test_half_an_upload_is_nothing_and_is_finished_by_the_next(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(url, tmp_path)
    put, left = Storage._put, [2]

    def dying(self: Storage, path: str, content: bytes | Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        put(self, path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Storage, "_put", dying)
        made(one)
    assert len(objects(url)) == 1 + 2
    assert two.find(make_stage(), {}) is None
    artifact = one.find(make_stage(), {})
    assert artifact is not None
    one.share(artifact)
    assert two.find(make_stage(), {}) is not None


def test_two_who_made_the_same_do_not_meet(url: str, tmp_path: Path) -> None:
    """Their files are equal, but not their times; whoever comes later changes nothing."""
    one, two = stores(url, tmp_path)
    first = build(one, make_stage(writes(took=1.0)))
    second = build(two, make_stage(writes(took=2.0)))
    one.share(first)
    before = objects(url)
    two.share(second)
    assert objects(url) == before
    third = Store(tmp_path / "three", Storage(url)).find(make_stage(), {})
    assert third is not None and third.metrics == first.metrics


def test_a_fetched_stage_takes_the_place_of_one_that_broke_off(url: str, tmp_path: Path) -> None:
    one, two = stores(url, tmp_path)
    name = made(one).path.name
    broken = tmp_path / "two" / "store" / f".tmp-{name}"
    broken.mkdir(parents=True)
    (broken / SAVED).touch()
    assert two.find(make_stage(name="other"), {}) is None
    assert (broken / SAVED).exists()
    assert two.find(make_stage(), {}) is not None
    assert not broken.exists()


# Accidents and attacks ---------------------------------------------------------------------------


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The manifest with other content, and sealed as if nothing had been."""

    def act(there: Path) -> None:
        (path,) = there.glob("store/*.json")
        manifest = unseal(path.read_bytes())
        change(manifest)
        path.write_bytes(seal(manifest))

    return act


def listed(name: str) -> Callable[[Path], object]:
    return rewritten(lambda m: m["files"].update({name: m["files"]["out.txt"]}))


def entry(**change: Any) -> Callable[[Path], object]:
    return rewritten(lambda m: m["files"]["out.txt"].update(change))


def content(there: Path) -> Path:
    """The file that holds `text`."""
    return next(p for p in (there / "sha256").iterdir() if p.read_bytes() == b"text")


def linked(there: Path) -> None:
    path = content(there)
    shutil.move(path, there / "elsewhere")
    path.symlink_to(there / "elsewhere")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (lambda there: content(there).write_bytes(b"tezt"), "changed since it was made"),
        (lambda there: content(there).write_bytes(b"text and more"), "13 bytes, must be 4"),
        (lambda there: content(there).unlink(), "missing, or a link"),
        (linked, "missing, or a link"),
        (listed("../x"), "unexpected file '../x'"),
        (listed("a/../../x"), "unexpected file"),
        (listed("/x"), "unexpected file '/x'"),
        (listed(""), "File exists"),
        (listed("deep"), "File exists"),
        (listed("out.txt/x"), "File exists|Not a directory"),
        (listed("./manifest.json"), "File exists"),
        (listed("x" * 300), "File name too long"),
        (listed("a\0b"), "null byte"),
        (entry(sha256="../../layout.json"), "unexpected digest"),
        (entry(sha256=3), "unexpected file"),
        (entry(bytes=10**30), "must be 1000"),
        (entry(bytes="4"), "must be 4"),
        (rewritten(lambda m: m["files"]["out.txt"].pop("bytes")), "bytes"),
        (rewritten(lambda m: m.update(key="0" * 64)), "of another artefact"),
        (rewritten(lambda m: m.update(stage="data")), "of another artefact"),
        (rewritten(lambda m: m.pop("files")), "files"),
        (lambda there: next(there.glob("store/*")).write_bytes(b""), "does not end in its own"),
        (lambda there: next(there.glob("store/*")).write_bytes(b" " * 8_000_001), "larger than"),
    ],
)
def test_what_is_not_what_was_sent_is_refused_and_leaves_nothing(
    tmp_path: Path, attack: Callable[[Path], object], said: str
) -> None:
    there = tmp_path / "there"
    one, two = stores(f"file://{there}", tmp_path)
    made(one)
    attack(there)
    with pytest.raises(BadData, match=said) as refused:
        two.find(make_stage(), {})
    assert f"{there}/store/s-" in str(refused.value) and "remove it" in str(refused.value)
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "x").exists()
    assert one.find(make_stage(), {}) is not None


def test_a_storage_that_sends_more_than_it_said_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(f"file://{tmp_path}/there", tmp_path)
    made(one)
    asked: list[int] = []

    def endless(self: Storage, path: str) -> Iterator[bytes]:
        if path.startswith("store/"):
            yield next((tmp_path / "there").glob("store/*")).read_bytes()
            return
        while len(asked) < 100:
            asked.append(1)
            yield b"x" * 1000

    monkeypatch.setattr(Storage, "_chunks", endless)
    with pytest.raises(BadData, match="changed since"):
        two.find(make_stage(), {})
    assert len(asked) == 1


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("nonsense://x", 2, "no address of a storage"),
        ("s3://bucket/x", 69, "Install s3fs"),
        ("file:///proc/no/such", 74, "--storage file:///proc/no/such: cannot write"),
    ],
)
def test_a_storage_that_cannot_be_had_is_one_line_before_anything_is_made(
    tmp_path: Path, url: str, code: int, said: str
) -> None:
    for words in (("run",), ("sweep", "--seeds", "2")):
        runs = tmp_path / "runs"
        assert said in refusal(advprune(*words, "--storage", url, "--runs", runs), code)
        assert not runs.exists()


def test_a_storage_that_fails_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"file://{tmp_path}/there")
    store = Store(tmp_path / "one", storage)
    artifact = build(store, make_stage())

    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("the network\nis gone")

    monkeypatch.setattr(storage._files, "info", gone)
    storage._shown = "s3://bucket"
    for act in (lambda: store.share(artifact), lambda: store.find(make_stage(name="t"), {})):
        with pytest.raises(StorageFailed, match=r"s3://bucket: cannot read \(the network is gone"):
            act()
    assert artifact.check()
    with pytest.raises(Refused) as refused:
        Storage("nonsense://user:secret@host/x")
    assert "secret" not in str(refused.value)


def test_a_folder_that_is_laid_out_otherwise_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_bytes(seal({"layout": 2}))
    with pytest.raises(Incompatible, match="not laid out as"):
        Storage(f"file://{tmp_path}")


# Runs --------------------------------------------------------------------------------------------


def test_a_run_is_gathered_from_what_others_made(url: str, tmp_path: Path) -> None:
    one, two = stores(url, tmp_path)
    artifact = made(one)
    one.publish("a_run", {"s": artifact})
    assert not two.gather("another_run")
    assert two.gather("a_run")
    (link,) = (tmp_path / "two" / "a_run").glob("00_s")
    assert (link / "out.txt").read_text() == "text"


def test_a_list_of_artefacts_that_leads_out_is_refused(tmp_path: Path) -> None:
    one, two = stores(f"file://{tmp_path}/there", tmp_path)
    one.publish("a_run", {"s": made(one)})
    (tmp_path / "there" / "runs" / "a_run.json").write_bytes(seal({"s": "../../x"}))
    with pytest.raises(BadData, match="no list of artefacts"):
        two.gather("a_run")


def test_a_sweep_fetches_the_runs_that_other_machines_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, runs = f"file://{tmp_path}/there", tmp_path / "runs"
    elsewhere = Store(tmp_path / "elsewhere", Storage(there))
    elsewhere.publish(REPORT["run"], {"s": made(elsewhere)})
    pages: list[list[Path]] = []
    monkeypatch.setattr(command, "gather", lambda folders, page: pages.append(folders))
    program(tmp_path, f"print(json.dumps({REPORT!r} | {{'words': sys.argv}}))", monkeypatch)
    words = ("sweep", "--grid", "sparsity=0.9", "--storage", there, "--runs", runs)
    result = advprune(*words, "--json")
    assert result.code == 0 and pages == [[runs]]
    (row,) = result.json["cells"]
    assert row["run"] == REPORT["run"]
    run = runs / REPORT["run"]
    assert (run / "00_s" / "out.txt").read_text() == "text"
    (recipe,) = runs.glob("sweeps/*/recipes/*.toml")
    assert (run / "recipe.toml").read_text() == recipe.read_text()


@pytest.mark.slow
def test_a_run_and_its_page_are_there_on_a_machine_that_did_not_make_them(
    tiny: Tiny, tmp_path: Path
) -> None:
    there, empty = f"file://{tmp_path}/there", tmp_path / "runs"
    assert tiny.again("--storage", there).code == tiny.result.code  # all cached, and sent
    words = ("run", *TINY, "--storage", there, "--runs", empty)
    result = advprune(*words)
    assert result.code == tiny.result.code and "nothing to do" in result.out
    assert {path.name for path in (empty / "store").iterdir()} == tiny.store
    assert json.loads((empty / "latest" / "report.json").read_text()) == tiny.report
    assert advprune("board", empty).code == 0
