"""A streamed file that is not what it was, or not in its folder, is one line, and not used."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import make, make_extra
from PIL import Image
from safetensors.torch import load_file, save_file

import advprune.data.decode
from advprune import data
from advprune.data import Files, Loaded, Reading, Stream
from advprune.data.contents import content_of
from advprune.errors import BadData, NotFound, Refused, StorageFailed


def load(spec: str, **options: Any) -> Loaded:
    return data.load(spec, data_dir=Path("nowhere"), stream=True, **options)


def passed(images: Loaded, workers: int = 0) -> None:
    train = images.train
    assert isinstance(train, Stream)
    train = replace(train, files=Files(train.files.root, workers))
    list(train.load(list(torch.arange(len(train)).split(5)), 1))


def refused(code: type[Refused], *words: str, act: Callable[[], object]) -> None:
    with pytest.raises(code) as refusal:
        act()
    message = str(refusal.value)
    assert refusal.value.exit_code == code.exit_code
    assert "\n" not in message
    for word in words:
        assert word in message


def vanish(path: Path) -> None:
    path.unlink()


def repaint(path: Path) -> None:
    """Another image with the size and the time of the one before."""
    before = path.stat()
    Image.new("RGB", (10, 8), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lead_out(path: Path) -> None:
    """A link to the very bytes, outside of the folder."""
    outside = path.parents[3] / "outside.png"
    shutil.move(path, outside)
    path.symlink_to(outside)


def lead_in_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


CHANGES: dict[str, tuple[Callable[[Path], None], type[Refused], str]] = {
    "vanished": (vanish, NotFound, "is gone"),
    "changed": (repaint, BadData, "has changed since the data stage read it"),
    "damaged": (truncate, BadData, "has changed since the data stage read it"),
    "a pipe": (become_a_pipe, BadData, "is no plain file"),
    "a folder": (become_a_folder, BadData, "is no plain file"),
    "led out": (lead_out, BadData, "leads out of"),
    "a circle": (lead_in_a_circle, BadData, "cannot be read"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_not_what_it_was_is_named(name: str, workers: int, tmp_path: Path) -> None:
    images = load(make(tmp_path / "set"))
    passed(images)
    change, code, words = CHANGES[name]
    assert isinstance(images.train, Stream)
    last = images.train.names.numpy().tobytes()[int(images.train.ends[-2]) :]
    path = tmp_path / "set" / os.fsdecode(last)
    change(path)
    refused(code, str(path), words, act=lambda: passed(images, workers))


def test_a_device_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    images = load(make(tmp_path))
    monkeypatch.setattr(Path, "read_bytes", fail)
    refused(StorageFailed, "Input/output error", "run again", act=lambda: passed(images))


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    images = load(make(tmp_path))
    monkeypatch.setattr(Path, "read_bytes", fail)
    refused(BadData, "Permission denied", "check its permissions", act=lambda: passed(images))


@pytest.mark.parametrize(
    "name", [b"../secret.png", b"/etc/passwd", b"a/../../secret.png", b"link/secret.png", b"a\0b"]
)
def test_no_name_leads_out_of_the_folder(name: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path)
    refused(BadData, "leads out of", act=lambda: content_of(root, name))


def test_links_that_stay_in_the_folder_are_followed(tmp_path: Path) -> None:
    spec = make(tmp_path / "set")
    path = tmp_path / "set" / "train" / "ant" / "0.png"
    shutil.move(path, tmp_path / "set" / "kept.png")
    path.symlink_to("../../kept.png")
    (tmp_path / "link").symlink_to("set")
    for found in (load(spec), load(f"folder:{tmp_path / 'link'}")):
        passed(found)


def test_links_that_leave_it_are_refused_before_any_training(tmp_path: Path) -> None:
    spec = make(tmp_path / "deep" / "set")
    for path in (tmp_path / "deep" / "set" / "train" / "ant").iterdir():
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    refused(BadData, "train/ant/", "leads out of", "copy it", act=lambda: load(spec))


# What cannot be streamed


def test_arrays_are_refused() -> None:
    refused(Refused, "digits: --stream is only for folders", act=lambda: load("digits"))


def test_extra_images_are_refused_beside_a_stream(tmp_path: Path) -> None:
    spec, more = make(tmp_path / "set"), make_extra(tmp_path / "more")
    refused(Refused, "--extra-data", "--stream", act=lambda: load(spec, extra=more))


def test_what_stays_in_memory_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(tmp_path)
    image = 8 * 10 * 3
    # Room for those to measure and calibrate with, and not for all.
    monkeypatch.setattr(advprune.data.decode, "free_memory", lambda: 2 * 26 * image)
    refused(Refused, "--stream", act=lambda: data.load(spec, data_dir=tmp_path))
    images = load(spec)
    assert len(images.val) + len(images.calib) + len(images.test) <= 26 < 36
    monkeypatch.setattr(advprune.data.decode, "free_memory", lambda: 2 * 6 * image)
    refused(Refused, "--limit-test", act=lambda: load(spec))
    refused(Refused, "free memory", act=lambda: images.train.images)


@pytest.mark.parametrize("shape", [(9, 10, 3), (8, 10)])
def test_an_image_of_another_form_is_refused_before_any_training(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    spec = make(tmp_path)
    image = Image.new("RGB" if len(shape) == 3 else "L", (shape[1], shape[0]))
    for path in (tmp_path / "train" / "zebra").iterdir():
        image.save(path)
    refused(BadData, "zebra", "in a set of", act=lambda: load(spec))


def test_damaged_files_are_refused_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(tmp_path)
    whole = load(spec)
    assert isinstance(whole.train, Stream)
    name = whole.train.names.numpy().tobytes()[: int(whole.train.ends[0])]
    path = tmp_path / os.fsdecode(name)
    truncate(path)
    refused(BadData, str(path), "cannot be decoded", act=lambda: load(spec))
    skipping = Reading(skip_bad=True)
    # One of a thousand is more than there are.
    refused(BadData, str(path), act=lambda: load(spec, reading=skipping))
    monkeypatch.setattr("advprune.data.sparing._ONE_BAD_IN", 10)
    found = load(spec, reading=skipping)
    assert len(found.skipped) == 1 and str(path) in found.skipped[0]
    assert len(found.train) == len(whole.train) - 1
    assert torch.equal(found.train.indices, whole.train.indices[1:])
    passed(found)
    second = tmp_path / os.fsdecode(
        whole.train.names.numpy().tobytes()[int(whole.train.ends[0]) : int(whole.train.ends[1])]
    )
    truncate(second)
    refused(BadData, "one of more than 1 such", act=lambda: load(spec, reading=skipping))


# What was stored


def test_whoever_reads_a_stored_stream_must_know_where_its_files_are(tmp_path: Path) -> None:
    data.save(load(make(tmp_path / "set")), tmp_path / "stored")
    refused(Refused, "nobody said where", act=lambda: data.read(tmp_path / "stored"))
    # They are looked for when they are wanted.
    found = data.read(tmp_path / "stored", Files(tmp_path / "nowhere", 0))
    refused(NotFound, "is gone", act=lambda: found.train.first(1))


Tensors = dict[str, torch.Tensor]
BREAKS: dict[str, Callable[[Tensors], Any]] = {
    "no ends": lambda t: t.pop("train.ends"),
    "images beside names": lambda t: t.update({"train.images": t["val.images"].clone()}),
    "names of another type": lambda t: t.update({"train.names": t["train.names"].long()}),
    "fewer digests": lambda t: t.update({"train.digests": t["train.digests"][1:]}),
    "shorter digests": lambda t: t.update({"train.digests": t["train.digests"][:, 1:].clone()}),
    "ends that go back": lambda t: t.update({"train.ends": t["train.ends"].flip(0)}),
    "ends before the first": lambda t: t.update({"train.ends": t["train.ends"] - 10**6}),
    "ends beyond the names": lambda t: t.update({"train.ends": t["train.ends"] + 1}),
    "another channel": lambda t: t.update({"train.counts": t["train.counts"][1:]}),
    "counts below zero": lambda t: t.update({"train.counts": t["train.counts"] - 10**6}),
    "a label too many": lambda t: t.update({"train.labels": t["train.labels"] + 7}),
    "an image twice": lambda t: t.update({"train.indices": t["train.indices"] * 0}),
    "no image": lambda t: t.update({k: v[:0] for k, v in t.items() if k.startswith("train")}),
    "another digest": lambda t: t["train.digests"].add_(1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_stored_stream_that_is_not_whole_is_refused(name: str, tmp_path: Path) -> None:
    data.save(load(make(tmp_path / "set")), tmp_path)
    path = tmp_path / "data.safetensors"
    tensors = load_file(path)
    BREAKS[name](tensors)
    save_file(tensors, path)
    refused(BadData, str(path), act=lambda: data.read(tmp_path, Files(tmp_path / "set", 0)))


@pytest.mark.parametrize(
    "reading", [1, None, {}, {"image_size": "8", "to_rgb": False, "skip_bad": False}, {"more": 1}]
)
def test_words_on_reading_that_are_none_are_refused(reading: Any, tmp_path: Path) -> None:
    data.save(load(make(tmp_path / "set")), tmp_path)
    path = tmp_path / "data.json"
    words = json.loads(path.read_text()) | {"reading": reading}
    path.write_text(json.dumps(words))
    refused(BadData, str(path), act=lambda: data.read(tmp_path, Files(tmp_path / "set", 0)))
