"""A folder of any files is a set of images, or is refused in one line; nothing else happens."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from advprune import data
from advprune.errors import BadData, Refused

FEW_AND_MANY = pytest.mark.parametrize(
    "examples", [25, pytest.param(2000, marks=pytest.mark.slow, id="many")]
)
Put = Callable[[Path], object]
ODD = [b"a b", b"\xff\xfe", b"new\nline", b"-rf", b"~", "ünï→".encode(), b"\x1b[31m", b".hidden"]
CLASSES = st.sampled_from([b"cat", b"dog", b"Dog", b"train", b"test", *ODD])
FILES = st.sampled_from([b"1.png", b"2.PNG", b"3.jpg", b"4.txt", b"5", b"6.tiff", b".7.png"])


def image(mode: str, size: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


SOUND = image("RGB", (6, 5))
WHOLE = [SOUND] * 6 + [image("L", (6, 5)), image("RGB", (5, 6)), image("RGBA", (6, 5))]
WHOLE += [image("P", (6, 5)), image("RGB", (1, 1)), image("CMYK", (6, 5), "TIFF"), b"", b"no image"]


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """An image of one kind or another, at times damaged."""
    whole = draw(st.sampled_from(WHOLE))
    if not whole or draw(st.integers(0, 9)):
        return whole
    at = draw(st.integers(0, len(whole) - 1))
    return draw(st.sampled_from([whole[:at], whole[:at] + b"\xff" + whole[at + 1 :], whole[at:]]))


def link(to: str) -> Put:
    return lambda path: path.symlink_to(to)


PUTS: st.SearchStrategy[Put] = st.one_of(
    *[contents().map(lambda content: lambda path: path.write_bytes(content))] * 8,
    st.sampled_from([link("nowhere"), link("sound0.png"), link("/dev/zero"), os.mkfifo]),
    st.just(Path.mkdir),
)
TREES = st.dictionaries(CLASSES, st.dictionaries(FILES, PUTS, max_size=3), max_size=4)


def load(root: Path) -> data.ImageSet | None:
    """The set, if it is one; else why not was told."""
    try:
        return data.load(f"folder:{root}", data_dir=root)
    except Refused as error:
        assert error.exit_code in (2, 65, 66)
        assert str(error).isprintable()
        return None


def build(root: Path, tree: dict[bytes, dict[bytes, Put]], sound: int) -> None:
    """The tree, in which every class has so many more images that are alike."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, files in tree.items():
        folder = root / os.fsdecode(name)
        folder.mkdir()
        for number in range(sound):
            (folder / f"sound{number}.png").write_bytes(SOUND)
        for file, put in files.items():
            put(folder / os.fsdecode(file))


@FEW_AND_MANY
def test_every_folder_is_images_or_refused(tmp_path: Path, examples: int) -> None:
    outcomes = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(TREES, st.sampled_from([0, 5, 5]), st.booleans())
    def holds(tree: dict[bytes, dict[bytes, Put]], sound: int, halves: bool) -> None:
        root = tmp_path / "images"
        build(root, tree, sound)
        if halves:
            root.rename(tmp_path / "train")
            root.mkdir()
            shutil.copytree(tmp_path / "train", root / "test", symlinks=True, copy_function=copied)
            (tmp_path / "train").rename(root / "train")
        found = load(root)
        outcomes.add(found is None)
        if found is not None:
            data.save(found, tmp_path / "saved")
            again = data.read(tmp_path / "saved")
            assert (again.classes, again.digest) == (found.classes, found.digest)
            for name, part in found.parts.items():
                assert torch.equal(again.parts[name].images, part.images)
                assert torch.equal(again.parts[name].labels, part.labels)

    holds()
    assert outcomes == {True, False}


def copied(source: str, target: str) -> object:
    """A pipe is made anew: to copy what it holds would take until somebody writes to it."""
    return shutil.copy2(source, target) if Path(source).is_file() else os.mkfifo(target)


@pytest.mark.parametrize("put", [os.mkfifo, link("/dev/zero"), link("nowhere")])
def test_what_is_no_plain_file_is_refused_unread(tmp_path: Path, put: Put) -> None:
    build(tmp_path / "images", {b"cat": {b"1.png": put}, b"dog": {}}, sound=5)
    with pytest.raises(BadData, match=r"cat/1\.png: cannot be decoded \(no plain file\)"):
        data.load(f"folder:{tmp_path}/images", data_dir=tmp_path)
