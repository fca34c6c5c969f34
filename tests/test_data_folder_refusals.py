"""Every unfit folder or image is refused in one line that names it."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from image_folders import COUNT, fill, make
from PIL import Image

import advprune.data.decode
from advprune import data
from advprune.errors import BadData, NotFound, Refused


def load(spec: str, **options: Any) -> data.ImageSet:
    return data.load(spec, data_dir=Path("nowhere"), **options)


def refused(spec: str, code: type[Refused], *words: str, **options: Any) -> None:
    with pytest.raises(code) as refusal:
        load(spec, **options)
    message = str(refusal.value)
    assert refusal.value.exit_code == code.exit_code
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "LA", "I;16", "1", "I", "F"])
@pytest.mark.parametrize("name", ["Bee", "zebra"])
def test_other_pixels_are_named(tmp_path: Path, mode: str, name: str) -> None:
    spec = make(tmp_path, suffix=".tiff")
    path = tmp_path / "train" / name / "0.tiff"
    Image.new(mode, (10, 8)).save(path)
    refused(spec, BadData, str(path), mode, "convert it to L")


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_sixteen_bit_colour_is_named(tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = tmp_path / "test" / "ant" / "3.png"
    path.write_bytes(png(10, 8, 16, 2, bytes(8 * (1 + 10 * 6))))
    refused(spec, BadData, str(path), "RGB of 16 bits")


@pytest.mark.parametrize("source", ["P", "RGB"])
def test_transparent_colour_is_named(tmp_path: Path, source: str) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / "ant" / "1.png"
    Image.new(source, (10, 8)).save(path, transparency=0 if source == "P" else (0, 0, 0))
    refused(spec, BadData, str(path), f"{source} with transparency")


def test_grey_among_colour_is_named(tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = tmp_path / "test" / "zebra" / "5.png"
    Image.new("L", (10, 8)).save(path)
    refused(spec, BadData, str(path), "is L in a set of RGB images", "convert")


def test_other_size_is_named(tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / "zebra" / "2.png"
    Image.new("RGB", (11, 8)).save(path)
    refused(spec, BadData, str(path), "11x8", "10x8", "--image-size")


def test_first_bad_file_is_reported(tmp_path: Path) -> None:
    spec = make(tmp_path)
    for path in (tmp_path / "test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(BadData) as first:
        load(spec)
    for _ in range(3):
        refused(spec, BadData, str(first.value))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm"])
def test_damaged_image_is_named(tmp_path: Path, suffix: str) -> None:
    spec = make(tmp_path, (24, 24, 3), suffix)
    path = tmp_path / "train" / "ant" / f"0{suffix}"
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(spec, BadData, str(path), "cannot be decoded")
    path.write_bytes(b"this is not an image at all")
    refused(spec, BadData, str(path), "cannot be decoded", "replace or remove it")


@pytest.mark.parametrize("side", [10_000, 40_000])
@pytest.mark.parametrize("name", ["Bee", "ant"])
def test_decompression_bomb_is_named(tmp_path: Path, side: int, name: str) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / name / "0.png"
    path.write_bytes(png(side, side, 8, 2, b"\0" * 100))
    refused(spec, BadData, str(path), "pixels", "scale it down")


def test_strip_that_grows_is_named(tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = tmp_path / "train" / "ant" / "0.png"
    Image.new("RGB", (9000, 1)).save(path)
    refused(spec, BadData, str(path), "pixels", "scale it down", reading=data.Reading(200))


def test_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none"
    refused(f"folder:{path}", NotFound, str(path), "check the path")
    with pytest.raises(NotFound, match="none") as refusal:
        data.fingerprint(f"folder:{path}", tmp_path, None)
    assert refusal.value.exit_code == 66
    refused("folder:", Refused, "folder:PATH")
    path.write_text("")
    refused(f"folder:{path}", BadData, str(path), "is a file")


def test_unfit_layouts(tmp_path: Path) -> None:
    def folder(*names: str) -> str:
        root = tmp_path / "-".join(names)
        for name in names:
            fill(root / name.replace("+", "/"), (4, 4))
        return f"folder:{root}"

    (tmp_path / "void").mkdir()
    refused(f"folder:{tmp_path / 'void'}", BadData, "void", "no class folders")
    refused(folder("only"), BadData, "only the class folder 'only'", "at least two")
    refused(folder("train+a", "train+b"), BadData, "train/ but no test/")
    refused(folder("test+a", "test+b"), BadData, "test/ but no train/")
    spec = folder("train+a", "train+b", "train+c", "test+a", "test+b")
    refused(spec, BadData, "train: has class 'c'", "lacks")
    spec = folder("train+a", "train+b", "test+a", "test+b", "test+d")
    refused(spec, BadData, "test: has class 'd'", "lacks")
    refused(folder("train+a", "test+a"), BadData, "only the class folder 'a'")
    spec = folder("x", "y")
    empty = tmp_path / "x-y" / "z"
    empty.mkdir()
    (empty / "readme.txt").write_text("no image")
    refused(spec, BadData, str(empty), "no images", ".png")


def test_image_size_below_one(tmp_path: Path) -> None:
    refused(
        make(tmp_path), Refused, "--image-size: must be at least 1, got 0", reading=data.Reading(0)
    )


def test_too_many_images_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(tmp_path)
    needed = 6 * COUNT * 8 * 10 * 3
    monkeypatch.setattr(advprune.data.decode, "free_memory", lambda: 2 * needed - 1)
    refused(spec, Refused, "36 images of 10x8", "--limit-train, --limit-test or --image-size")
    monkeypatch.setattr(advprune.data.decode, "free_memory", lambda: 2 * needed)
    assert load(spec).shape == (3, 8, 10)
