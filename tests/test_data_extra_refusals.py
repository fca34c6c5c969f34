"""Extra images that cannot be trained on, or must not be, are refused in one line."""

from pathlib import Path

import pytest
import torch
from image_folders import COUNT, fill, make, make_extra, source_of
from PIL import Image

from advprune import data
from advprune.data.extra import read_extra
from advprune.errors import BadData, NotFound, Refused


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return make(tmp_path / "set")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_extra(tmp_path / "more")


def load(spec: str, extra: Path | None) -> data.ImageSet:
    return data.load(spec, data_dir=Path("nowhere"), extra=extra)


def refused(spec: str, extra: Path, code: type[Refused], *words: str) -> None:
    with pytest.raises(code) as refusal:
        load(spec, extra)
    message = str(refusal.value)
    assert refusal.value.exit_code == code.exit_code
    assert "\n" not in message
    for word in words:
        assert word in message


def write(path: Path, image: torch.Tensor) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.mark.parametrize("name", ["val", "calib", "test"])
def test_what_is_measured_with_is_not_trained_on(spec: str, folder: Path, name: str) -> None:
    seen = load(spec, None).splits[name].images
    # Under another label and in another format: the pixels count.
    write(folder / "ant" / "9.bmp", seen[0])
    write(folder / "zebra" / "00.png", seen[1])
    refused(spec, folder, BadData, str(folder / "ant" / "9.bmp"), "folder:set", "2 such", "remove")


def test_what_is_trained_on_may_come_twice(spec: str, folder: Path) -> None:
    images = load(spec, None)
    write(folder / "ant" / "9.bmp", images.train.images[0])
    nearly = images.test.images[0].clone()
    nearly[0, 0, 0] ^= 1
    write(folder / "zebra" / "00.png", nearly)
    extra = load(spec, folder).extra
    assert extra is not None
    assert len(extra) == 3 * COUNT + 2


def test_unfit_folders(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "none"
    refused(spec, path, NotFound, "--extra-data", str(path), "check the path")
    path.write_text("")
    refused(spec, path, BadData, "--extra-data", str(path), "is a file")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "0.png").write_bytes(b"in no class")
    refused(spec, tmp_path / "void", BadData, str(tmp_path / "void"), "has no images", "/<class>/")
    (tmp_path / "void" / "ant").mkdir()
    refused(spec, tmp_path / "void", BadData, str(tmp_path / "void" / "ant"), "no images", ".png")
    halves = tmp_path / "set"
    refused(spec, halves, BadData, "has test/ and train/", "give the folder that holds the class")


def test_unknown_classes_are_named(spec: str, folder: Path) -> None:
    for name in ("yak", "bee"):
        fill(folder / name, (8, 10, 3))
    words = ("folder:set has no classes called 'bee'", "(classes: Bee, ant, zebra)")
    refused(spec, folder, BadData, str(folder / "bee"), "rename or remove", *words)


def test_a_name_of_two_classes_is_no_label(tmp_path: Path) -> None:
    fill(tmp_path / "crane", (2, 2))
    with pytest.raises(BadData, match="toy has 2 classes called 'crane'"):
        read_extra(tmp_path, source_of("crane", "heron", "crane"), 0, [])


def test_other_images_are_named(spec: str, folder: Path) -> None:
    path = folder / "zebra" / "0.png"
    Image.new("RGB", (11, 8)).save(path)
    refused(spec, folder, BadData, str(path), "is 11x8 in a set of 10x8", "--image-size")
    Image.new("L", (10, 8)).save(path)
    refused(spec, folder, BadData, str(path), "is L in a set of RGB images", "convert")
    path.write_bytes(b"this is not an image at all")
    refused(spec, folder, BadData, str(path), "cannot be decoded", "replace or remove it")
