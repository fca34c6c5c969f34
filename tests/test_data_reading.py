"""How image files are read where the user has a choice: converted to RGB, damaged ones left out."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import fill, make, make_extra, pixels
from PIL import Image

from advprune import data
from advprune.errors import BadData, Refused

RGB = data.Reading(to_rgb=True)
SKIP = data.Reading(skip_bad=True)


def load(spec: str, reading: data.Reading, **options: Any) -> data.Loaded:
    return data.load(spec, data_dir=Path("nowhere"), reading=reading, **options)


def image_at(images: data.ImageSet, index: int) -> np.ndarray:
    """(H, W, C), of the image with this identity."""
    for split in images.splits.values():
        for image, found in zip(split.images, split.indices, strict=True):
            if int(found) == index:
                return image.permute(1, 2, 0).numpy()
    raise AssertionError(index)


# The train images of "Bee", the first class, have the identities 0, 1, ...
@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "RGBA", "LA", "P"])
def test_every_kind_of_8_bits_becomes_rgb_as_torchvision_reads_it(
    tmp_path: Path, mode: str
) -> None:
    spec = make(tmp_path, suffix=".tiff")
    path = tmp_path / "train" / "Bee" / "0.tiff"
    Image.fromarray(pixels(5, 8, 10, 3)).convert(mode).save(path)
    images = load(spec, RGB)
    assert images.shape == (3, 8, 10)
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(image_at(images, 0), wanted)
    assert images.digest == load(spec, RGB).digest


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_of_16_bits_the_upper_eight_stay(tmp_path: Path, suffix: str) -> None:
    """Pillow alone would make everything above 255 white."""
    spec = make(tmp_path)
    wide = np.arange(80, dtype=np.uint16).reshape(8, 10) * 800
    Image.fromarray(wide).save(tmp_path / "train" / "Bee" / f"00{suffix}")
    found = image_at(load(spec, RGB), 1)
    np.testing.assert_array_equal(found, np.stack([wide // 256] * 3, axis=2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_stay_refused(tmp_path: Path, mode: str) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / "ant" / "9.tiff"
    Image.new(mode, (10, 8)).save(path)
    with pytest.raises(BadData, match=f"9.tiff: pixels are {mode}; convert it to L"):
        load(spec, RGB)


def test_a_set_of_grey_images_becomes_colour_and_is_resized(tmp_path: Path) -> None:
    spec = make(tmp_path, shape=(8, 10))
    assert load(spec, data.Reading()).shape == (1, 8, 10)
    assert load(spec, data.Reading(image_size=6, to_rgb=True)).shape == (3, 6, 6)


def large(root: Path) -> tuple[str, list[Path]]:
    """2,500 images in two classes: two may be damaged. Links, for a folder made in no time."""
    fill(root / "one", (4, 4, 3))
    for name in ("cats", "dogs"):
        (root / "set" / name).mkdir(parents=True)
        for number in range(1250):
            os.link(root / "one" / f"{number % 6}.png", root / "set" / name / f"{number:04}.png")
    return f"folder:{root / 'set'}", sorted((root / "set").glob("*/*.png"))


def spoil(*paths: Path) -> None:
    for path in paths:
        path.unlink()
        path.write_bytes(b"\x89PNG\r\n\x1a\nno more")


def test_one_damaged_image_in_a_thousand_is_left_out_and_told(tmp_path: Path) -> None:
    spec, paths = large(tmp_path)
    whole = load(spec, SKIP)
    assert whole.skipped == ()
    spoil(paths[0], paths[1300])  # the first image is also the one whose form the others share
    with pytest.raises(BadData, match=r"0000.png: cannot be decoded"):
        load(spec, data.Reading())
    images = load(spec, SKIP)
    assert [line.partition(": cannot be decoded")[0] for line in sorted(images.skipped)] == [
        str(paths[0]),
        str(paths[1300]),
    ]
    gone = torch.tensor([0, 1300])
    for name, split in images.splits.items():
        # Every other image is where it was, whatever is left out.
        stay = ~torch.isin(whole.splits[name].indices, gone)
        assert torch.equal(split.indices, whole.splits[name].indices[stay])
        assert torch.equal(split.images, whole.splits[name].images[stay])
        assert torch.equal(split.labels, whole.splits[name].labels[stay])
    assert sum(map(len, images.splits.values())) == 2498
    spoil(paths[7])
    with pytest.raises(BadData, match=r"cannot be decoded .* no more than 2 of 2500"):
        load(spec, SKIP)


def test_of_few_images_none_may_be_damaged(tmp_path: Path) -> None:
    spec = make(tmp_path)
    spoil(tmp_path / "train" / "Bee" / "0.png")
    with pytest.raises(BadData, match=r"0.png: cannot be decoded"):
        load(spec, SKIP)


def test_other_faults_are_not_left_out_and_extra_images_never_are(tmp_path: Path) -> None:
    spec, paths = large(tmp_path / "a")
    paths[3].unlink()
    Image.new("RGB", (5, 4)).save(paths[3])
    with pytest.raises(BadData, match=r"0003.png: is 5x4 in a set of 4x4"):
        load(spec, SKIP)
    spec = make(tmp_path / "b")
    more = make_extra(tmp_path / "more")
    spoil(more / "ant" / "0.png")
    with pytest.raises(BadData, match=r"0.png: cannot be decoded"):
        load(spec, SKIP, extra=more)


@pytest.mark.parametrize(("reading", "option"), [(RGB, "--convert"), (SKIP, "--skip-bad")])
def test_sets_that_are_no_files_have_nothing_to_choose(
    tmp_path: Path, reading: data.Reading, option: str
) -> None:
    for spec in ("digits", "cifar10"):
        with pytest.raises(Refused, match=f"{spec}: {option} is only for folders and imagenet"):
            load(spec, reading)


def test_links_that_lead_nowhere_or_back_are_named(tmp_path: Path) -> None:
    spec = make(tmp_path)
    link = tmp_path / "train" / "ant" / "away.png"
    link.symlink_to(tmp_path / "gone.png")
    with pytest.raises(BadData, match=r"away.png: cannot be read \(No such file"):
        data.fingerprint(spec, tmp_path, None)
    link.unlink()
    (tmp_path / "train" / "ant" / "deeper").symlink_to(tmp_path / "train")
    for look in (
        lambda: load(spec, data.Reading()),
        lambda: data.fingerprint(spec, tmp_path, None),
    ):
        with pytest.raises(BadData, match=r"deeper: leads back to .*train, without end"):
            look()
