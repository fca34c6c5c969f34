"""A folder of images is read as Pillow reads it, and only as far as it is needed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import COUNT, fill, make, pixels
from PIL import Image
from torchvision.transforms import v2 as oracle

import advprune.data.decode
from advprune import data


def load(spec: str, **options: Any) -> data.ImageSet:
    return data.load(spec, data_dir=Path("nowhere"), **options)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".PNG", ".tiff"])
@pytest.mark.parametrize("shape", [(8, 10, 3), (8, 10)])
def test_pixels_are_those_of_pillow(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    if suffix == ".webp" and len(shape) == 2:
        pytest.skip("WebP has no grey")
    images = load(make(tmp_path / "set", shape, suffix))
    channels = 3 if len(shape) == 3 else 1
    assert images.classes == ("Bee", "ant", "zebra")
    assert images.shape == (channels, 8, 10)
    assert images.name == "folder:set"
    paths = [
        tmp_path / "set" / half / name / f"{i}{suffix}"
        for half in ("train", "test")
        for name in images.classes
        for i in range(COUNT)
    ]
    for split in images.splits.values():
        for image, label, index in zip(split.images, split.labels, split.indices, strict=True):
            path = paths[int(index)]
            wanted = np.asarray(Image.open(path)).reshape(8, 10, channels)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), wanted)
            assert images.classes[int(label)] == path.parent.name
    indices = torch.cat([split.indices for split in images.splits.values()])
    assert sorted(indices.tolist()) == list(range(len(paths)))
    assert images.test.indices.min() == len(paths) // 2


def test_one_folder_is_split(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        for part in range(4):  # deeper folders count, too
            fill(tmp_path / name / str(part), (5, 5), seed=100 * i + 10 * part)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    images = load(f"folder:{tmp_path}")
    sizes = {name: len(split) for name, split in images.splits.items()}
    assert sizes == {"test": 9, "val": 3, "calib": 3, "train": 33}
    assert load(f"folder:{tmp_path}").digest == images.digest
    assert load(f"folder:{tmp_path}", split_seed=1).digest != images.digest


def test_moved_folder_is_the_same_data(tmp_path: Path) -> None:
    make(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert load(f"folder:{tmp_path / 'here'}").digest == load(f"folder:{tmp_path / 'there'}").digest


@pytest.mark.parametrize(
    ("shape", "augment"), [((24, 24, 3), "crop-flip"), ((24, 23, 3), "none"), ((24, 24), "none")]
)
def test_default_augmentation(tmp_path: Path, shape: tuple[int, ...], augment: str) -> None:
    assert load(make(tmp_path, shape)).augment == augment


@pytest.mark.parametrize("shape", [(40, 31, 3), (31, 40), (16, 16, 3), (7, 13, 3)])
def test_resizing_is_that_of_torchvision(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = load(make(tmp_path, shape), reading=data.Reading(16))
    assert images.shape[1:] == (16, 16)
    paths = sorted((tmp_path / "test").glob("*/*"))
    for image, index in zip(images.test.images, images.test.indices, strict=True):
        stored = Image.open(paths[int(index) - 3 * COUNT])
        wanted = oracle.Compose([oracle.Resize(16), oracle.CenterCrop(16), oracle.PILToTensor()])(
            stored
        )
        assert torch.equal(image, wanted)


def test_resizing_brings_different_sizes_together(tmp_path: Path) -> None:
    spec = make(tmp_path)
    Image.fromarray(pixels(0, 30, 20, 3)).save(tmp_path / "train" / "ant" / "0.png")
    assert load(spec, reading=data.Reading(6)).shape == (3, 6, 6)


def test_limits_choose_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(tmp_path)
    opened = []
    really = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or really(path))
    images = load(spec, limit_train=9, limit_test=3)
    assert [len(split) for split in images.splits.values()] == [3, 3, 3, 3]
    assert len(opened) == 1 + 12  # the first tells the size


def test_palette_without_transparency_is_colour(tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / "ant" / "0.png"
    colours = Image.fromarray(pixels(0, 8, 10, 3)).quantize(16)
    colours.save(path)
    images = load(spec)
    position = COUNT  # the first of the second class, "ant"
    found = torch.cat([s.images[s.indices == position] for s in images.splits.values()])
    np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), colours.convert("RGB"))


def test_free_memory_is_plausible() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < advprune.data.decode.free_memory() <= total


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    def now(size: int | None = None) -> str:
        return data.fingerprint(spec, tmp_path, size)

    spec = make(tmp_path / "set")
    found = [now()]
    assert now() == found[0]
    found.append(now(16))
    path = tmp_path / "set" / "train" / "ant" / "0.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    found.append(now())
    path.rename(path.with_name("new.png"))
    found.append(now())
    path.with_name("new.png").unlink()
    found.append(now())
    path.write_bytes(b"longer than before" * 1000)
    found.append(now())
    assert len(set(found)) == len(found)
    (path.parent / "notes.txt").write_text("not an image")
    assert now() == found[-1]
