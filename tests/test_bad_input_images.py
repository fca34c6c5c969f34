"""Bad images: a folder or file that is not what it must be is named before any network learns."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_input import refused
from PIL import Image
from stage_runs import Runner
from test_data_folder_refusals import png
from test_data_torchvision import idx

from pipeline.resolve import resolve
from pipeline.stages.data import SKIPPED
from pipeline.stages.report import notes_on_data

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")

DOG = "dogs/07.png"


def photo(path: Path, mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def two_classes(folder: Path, count: int = 30) -> None:
    for name in ("cats", "dogs"):
        for number in range(count):
            photo(folder / name / f"{number:02d}.png")


def one_class(folder: Path) -> None:
    two_classes(folder)
    shutil.rmtree(folder / "dogs")


def no_class(folder: Path) -> None:
    photo(folder / "00.png")


def empty_class(folder: Path) -> None:
    two_classes(folder)
    (folder / "eels").mkdir()


def class_of_one(folder: Path) -> None:
    """Enough for one split, and there are four."""
    two_classes(folder, 300)
    photo(folder / "eels" / "00.png")


def class_without_test(folder: Path) -> None:
    two_classes(folder / "train")
    two_classes(folder / "test")
    shutil.rmtree(folder / "test" / "dogs")


def unreadable(folder: Path) -> None:
    two_classes(folder)
    (folder / DOG).write_bytes(b"\x89PNG\r\n\x1a\nno more")


def empty_file(folder: Path) -> None:
    two_classes(folder)
    (folder / DOG).write_bytes(b"")


def dangling(folder: Path) -> None:
    two_classes(folder)
    (folder / "dogs" / "31.png").symlink_to("nowhere.png")


def endless(folder: Path) -> None:
    two_classes(folder)
    (folder / "dogs" / "again").symlink_to(folder)


def other_size(folder: Path) -> None:
    two_classes(folder)
    photo(folder / DOG, size=9)


def in_mode(mode: str, name: str = DOG) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        two_classes(folder)
        photo(folder / name, mode=mode)

    make.__name__ = f"in mode {mode}"
    return make


def of_16_bits(folder: Path) -> None:
    two_classes(folder)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(folder / DOG)


def bomb(folder: Path) -> None:
    """A header that promises 40,000 x 40,000 pixels, and next to nothing behind it."""
    two_classes(folder)
    (folder / DOG).write_bytes(png(40_000, 40_000, 8, 2, b""))


def a_file(folder: Path) -> None:
    folder.write_text("")


FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (a_file, "is a file"),
    (no_class, "has no class folders"),
    (one_class, "only the class folder 'cats'"),
    (empty_class, "eels: the class has no images"),
    (class_of_one, "has no image of class 'eels'"),
    (class_without_test, "only the class folder 'cats'"),
    (unreadable, f"{DOG}: cannot be decoded"),
    (empty_file, f"{DOG}: cannot be decoded"),
    (dangling, "dogs/31.png: cannot be read (No such file"),
    (endless, "dogs/again: leads back to"),
    (other_size, f"{DOG}: is 9x9 in a set of 8x8 images; scale it, or bring all"),
    (in_mode("L"), f"{DOG}: is L in a set of RGB images; convert"),
    (in_mode("1"), f"{DOG}: pixels are 1; convert it to L"),
    (in_mode("RGBA"), f"{DOG}: pixels are RGBA with transparency; convert it"),
    (in_mode("LA"), f"{DOG}: pixels are LA with transparency; convert it"),
    (in_mode("CMYK", "dogs/32.jpg"), "dogs/32.jpg: pixels are CMYK; convert it"),
    (of_16_bits, f"{DOG}: pixels are I;16 of 16 bits; convert it"),
    (bomb, f"{DOG}: more than 89478485 pixels"),
]


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("make", "says"), FOLDERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_bad_folder_of_images(
    make: Callable[[Path], None], says: str, command: str, tmp_path: Path
) -> None:
    make(tmp_path / "photos")
    refused(command, "--data", f"folder:{tmp_path / 'photos'}", code=65, says=(says,))


def test_a_bomb_is_known_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb(tmp_path / "photos")
    (tmp_path / "photos" / DOG).rename(tmp_path / "photos" / "cats" / "00.png")

    def unpack(*_: object) -> None:
        raise AssertionError("pixels are unpacked")

    monkeypatch.setattr(Image.Image, "load", unpack)
    words = ("attack", "net:of_mine", "--data", f"folder:{tmp_path / 'photos'}")
    refused(*words, code=65, says=("cats/00.png: more than", "pixels; remove it or scale it down"))


def test_one_bad_image_of_sixty_is_more_than_may_be_skipped(tmp_path: Path) -> None:
    unreadable(tmp_path / "photos")
    words = ("run", "--data", f"folder:{tmp_path / 'photos'}", "--skip-bad")
    refused(*words, code=65, says=(f"{DOG}: cannot be decoded",))


def test_a_folder_with_fewer_images_than_calibrate(tmp_path: Path) -> None:
    two_classes(tmp_path / "photos")
    words = ("run", "--data", f"folder:{tmp_path / 'photos'}")
    refused(*words, code=65, says=("leave 4 to calibrate", "at least 1024"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("mist", "did you mean"),
        ("mnist2", "did you mean mnist"),
        ("folder", "did you mean folder:PATH"),
        ("../digits", "did you mean digits"),
    ],
)
def test_a_set_that_is_not_known(data: str, says: str) -> None:
    for command in (("run",), ("plan",), ("attack", "net:of_mine")):
        refused(*command, "--data", data, code=2, says=(f"'{data}' is not known", says))


def mnist(folder: Path, label: int) -> None:
    """Forty images of ten classes, but for one label."""
    labels = np.arange(40) % 10
    labels[7] = label
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        idx(folder / f"{name}-images-idx3-ubyte", np.zeros((40, 28, 28), dtype=np.uint8))
        idx(folder / f"{name}-labels-idx1-ubyte", labels)


@pytest.mark.parametrize("label", [10, 156, 255], ids=["10", "-100 as a byte", "-1 as a byte"])
def test_a_label_beyond_the_classes(label: int, tmp_path: Path) -> None:
    mnist(tmp_path / "mnist" / "MNIST" / "raw", label)
    words = ("attack", "net:of_mine", "--data", "mnist", "--data-dir", tmp_path)
    refused(*words, code=65, says=(f"mnist: label {label} of image 7 lies outside [0, 9]",))


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (a_file, 65, "is a file"),
        (lambda _: None, 66, "there is no folder"),
        (two_classes, 65, "digits has no classes called 'cats'"),
        (lambda folder: photo(folder / "3" / "0.png"), 65, "is RGB in a set of L images"),
        (lambda folder: photo(folder / "3" / "0.png", "L", 9), 65, "is 9x9 in a set of 8x8"),
        (lambda folder: photo(folder / "10" / "0.png", "L"), 65, "no classes called '10'"),
        (lambda folder: photo(folder / "-1" / "0.png", "L"), 65, "no classes called '-1'"),
        (empty_class, 65, "the class has no images"),
    ],
    ids=["file", "nowhere", "classes", "colour", "size", "label 10", "label -1", "empty"],
)
def test_extra_images_that_do_not_fit(
    make: Callable[[Path], None], code: int, says: str, tmp_path: Path
) -> None:
    make(tmp_path / "more")
    refused("run", "--extra-data", tmp_path / "more", code=code, says=(says,))


def test_what_was_read_otherwise_is_recorded(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    in_mode("RGBA")(photos)
    for name in ("cats", "dogs"):
        for number in range(100, 800):
            (photos / name / f"{number}.png").hardlink_to(photos / name / "00.png")
    (photos / "dogs" / "08.png").write_bytes(b"")
    given = {"data": f"folder:{photos}", "convert": "rgb", "skip_bad": True}
    recipe, _ = resolve(given, settings=["adversarial.batch_size=4096"])
    made = Runner(recipe, tmp_path / "runs").build("data")
    assert (made.manifest["config"]["convert"], made.manifest["config"]["skip_bad"]) == (
        "rgb",
        True,
    )
    assert made.metrics["skipped"] == 1
    assert "dogs/08.png: cannot be decoded" in made.file(SKIPPED).read_text()
    # The report tells it, and that a batch is not larger than all images.
    skipped, wide = notes_on_data(recipe, made.metrics)
    assert skipped == "1 damaged images were left out (--skip-bad): skipped.txt beside the data"
    train = made.metrics["train"]
    assert wide == (
        f"adversarial.batch_size 4096 is more than the {train} training images: one batch an epoch"
    )
