"""`data check` says what a run would, and more: what is odd, doubtful or there twice."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import pixels
from PIL import Image
from test_bad_input_images import FOLDERS, photo
from tiny_run import Result, advprune, refusal

from advprune.data import decode
from advprune.data.duplicates import duplicates
from advprune.data.separation import separation
from advprune.errors import Refused
from deploy.gate_outlook import outlook
from deploy.policies import Terms
from pipeline.resolve import resolve
from pipeline.stages.data import load_images

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")


def fill(folder: Path, count: int, seed: int, size: tuple[int, int] = (6, 6)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = pixels(seed, count, size[1], size[0], 3)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04}.png")


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder: 2 classes, 1,200 images to train on and 200 to test with."""
    root = tmp_path_factory.mktemp("sound") / "photos"
    for seed, name in enumerate(("cat", "dog")):
        fill(root / "train" / name, 600, seed)
        fill(root / "test" / name, 100, 10 + seed)
    return root


@pytest.fixture
def photos(master: Path, tmp_path: Path) -> Path:
    return shutil.copytree(master, tmp_path / "photos", copy_function=os.link)


def replaced(path: Path, content: bytes) -> None:
    """Another file of this name: the master is linked to the old one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def checked(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    result = advprune("data", "check", folder, *words, "--json")
    assert result.code == code, result
    assert result.json["exit_code"] == code
    return result.json


def code_of_a_run(folder: Path, **given: Any) -> int:
    """The oracle: what the first stage of a run makes of it."""
    try:
        load_images(resolve({"data": f"folder:{folder}", **given}, environment={})[0])
    except Refused as error:
        return error.exit_code
    return 0


# What is there ----------------------------------------------------------------------------------


def test_a_sound_folder_is_told_in_full(photos: Path) -> None:
    found = checked(photos)
    assert code_of_a_run(photos) == 0
    assert found["data"] == f"folder:{photos}"
    assert found["layout"] == "train/ and test/"
    assert found["classes"] == {name: {"train": 600, "test": 100} for name in ("cat", "dog")}
    assert found["form"] == {"mode": "RGB", "width": 6, "height": 6}
    assert found["stored"] == {"PNG RGB": 1400}
    run = load_images(resolve({"data": f"folder:{photos}"})[0])
    assert found["splits"] == {name: len(part) for name, part in run.splits.items()}
    assert found["faults"] == {}
    assert found["error"] is None
    assert found["refusals"] == []
    assert found["memory"]["images"] == 1400 * 6 * 6 * 3
    expected = outlook(200, Terms())
    assert expected is not None
    assert found["gate"]["images"] == 200
    assert found["gate"]["detectable_drop"] == expected.detectable_drop


def test_the_text_has_what_the_document_has(photos: Path) -> None:
    found, shown = checked(photos), advprune("data", "check", photos)
    assert (shown.code, shown.err) == (0, "")
    flat = shown.out
    for name, count in found["splits"].items():
        assert f"{name} {count:,}" in flat
    assert all(warning in flat for warning in found["warnings"])
    assert flat.rstrip().endswith(f"→ {found['next']}")


def test_the_next_command_is_one_that_can_be_typed(photos: Path, tmp_path: Path) -> None:
    moved = photos.rename(tmp_path / "my photos; rm -rf ~")
    words = shlex.split(checked(moved)["next"])
    assert words[:4] == ["advprune", "run", "--data", f"folder:{moved}"]
    planned = advprune("plan", *words[2:], "--set", "attack_steps=1", "--json")
    assert planned.code == 0, planned


def test_one_folder_is_split(photos: Path) -> None:
    found = checked(photos / "train", code=65)  # too few are left to calibrate with
    assert found["layout"].startswith("one folder")
    assert found["splits"]["test"] == 240
    assert found["classes"]["cat"] == {"train": 480, "test": 120}


def test_a_set_by_its_name() -> None:
    found = checked(Path("digits"))
    assert (found["data"], found["layout"]) == ("digits", "a set of its own")
    assert sum(found["splits"].values()) == 1797
    assert found["next"].startswith("advprune run --data digits")


# What a run refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"), FOLDERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_a_run_refuses_is_refused_likewise(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    """In each of these one thing is wrong, or the first of several is the same."""
    make(tmp_path / "photos")
    assert code_of_a_run(tmp_path / "photos") == 65
    assert says in refusal(advprune("data", "check", tmp_path / "photos"), 65)


def test_all_that_is_bad_is_told_and_not_only_the_first(photos: Path) -> None:
    for number in range(9):
        replaced(photos / "train" / "cat" / f"{number:04}.png", b"no image")
    (photos / "train" / "dog" / "0001.png").unlink()
    photo(photos / "train" / "dog" / "0001.png", "RGBA", 6)
    (photos / "test" / "dog" / "0002.png").unlink()
    photo(photos / "test" / "dog" / "0002.png", "RGB", 9)
    found = checked(photos, code=65)
    assert {kind: fault["count"] for kind, fault in found["faults"].items()} == {
        "damaged": 9,
        "unfit": 1,
        "odd": 1,
    }
    assert len(found["faults"]["damaged"]["first"]) == 5
    assert len(found["refusals"]) == 4  # the probe of the first file, and each kind
    shown = advprune("data", "check", photos)
    message = refusal(Result(shown.code, "", shown.err), 65)
    assert message == found["error"]
    assert "and 4 more" in shown.out


def test_the_way_out_is_the_next_command(photos: Path) -> None:
    """From each refusal on, as far as options lead."""
    photo(photos / "train" / "dog" / "grey.png", "L", 40)
    photo(photos / "train" / "dog" / "clear.png", "RGBA", 6)
    replaced(photos / "train" / "cat" / "0005.png", b"")
    found = checked(photos, code=65)
    words = shlex.split(found["next"])[1:]
    assert words[:3] == ["data", "check", str(photos)]
    assert {"--convert", "--image-size", "--skip-bad"} <= set(words)
    done = advprune(*words, "--json")
    assert done.code == 0, done.json["error"]
    given = {"convert": "rgb", "skip_bad": True, "image_size": done.json["settings"]["image_size"]}
    assert code_of_a_run(photos, **given) == 0
    # What was chosen for the check goes on into the run.
    assert {"--convert", "--image-size", "--skip-bad"} <= set(shlex.split(done.json["next"]))
    assert done.json["faults"]["damaged"]["count"] == 1
    shown = advprune(*words)
    assert "! 1 files cannot be decoded" in shown.out


def test_too_many_damaged_files_are_not_skipped(photos: Path) -> None:
    for number in range(2):
        replaced(photos / "train" / "cat" / f"{number:04}.png", b"")
    found = checked(photos, "--skip-bad", code=65)
    assert code_of_a_run(photos, skip_bad=True) == 65
    assert "--skip-bad" in found["next"]  # it was given


def test_too_few_to_calibrate_with(photos: Path) -> None:
    for path in sorted((photos / "train").rglob("*.png"))[::2]:
        path.unlink()
    found = checked(photos, code=65)
    assert code_of_a_run(photos) == 65
    assert found["error"].endswith("(add images or raise --limit-train)")
    assert "leave 60 to calibrate" in found["error"]


def test_a_constant_channel(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        image = np.array(Image.open(path))
        image[..., 1] = 7
        path.unlink()
        Image.fromarray(image).save(path)
    assert "channel 1 has the value 7 in every training image" in checked(photos, code=65)["error"]


def test_more_images_than_fit_into_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 1400 * 6 * 6 * 3
    monkeypatch.setattr(decode, "free_memory", lambda: 2 * needed - 1)
    assert code_of_a_run(photos) == 2
    found = checked(photos)
    assert found["settings"]["stream"] is True
    assert "--stream" in found["next"]
    # What is measured stays in memory in any case.
    monkeypatch.setattr(decode, "free_memory", lambda: needed // 10)
    found = checked(photos, code=2)
    assert "more than half of the" in found["error"]
    assert found["stored"] == {"PNG RGB": 1400}  # it was looked at all the same


def test_words_that_mean_nothing() -> None:
    assert "there is no folder" in refusal(advprune("data", "check", "none"), 66)
    assert "Missing argument" in refusal(advprune("data", "check"), 2)
    assert "--image-size 3" in refusal(advprune("data", "check", "digits", "--image-size", "3"), 2)
    assert "--convert" in refusal(advprune("data", "check", "digits", "--convert", "cmyk"), 2)
    assert "only for folders" in refusal(advprune("data", "check", "digits", "--skip-bad"), 2)
    assert "names no folder" in refusal(advprune("data", "check", "folder:"), 2)


def test_a_folder_that_cannot_be_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system is asked to say no."""
    really = os.scandir

    def scandir(path: Any) -> Any:
        if os.fsdecode(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = refusal(advprune("data", "check", photos), 65)
    assert "cannot be listed (Permission denied); check its permissions" in message


def test_names_that_are_no_text(photos: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(photos / "train" / "cat") + b"/\xff\xfe\x1b[31m.png"))
    odd.write_bytes(b"no image")
    shown = advprune("data", "check", photos)
    assert shown.code == 65
    assert "\x1b" not in shown.out + shown.err
    assert "\\udcff" in shown.out
    assert checked(photos, code=65)["faults"]["damaged"]["count"] == 1


# What is doubtful -------------------------------------------------------------------------------


def test_copies_are_counted_where_they_are(photos: Path) -> None:
    def again(source: str, target: str) -> None:
        Image.open(photos / source).save(photos / target)  # other bytes, the same pixels

    assert not any("copies" in text for text in checked(photos)["warnings"])
    again("train/cat/0000.png", "test/cat/again.bmp")
    again("train/cat/0001.png", "test/dog/again.bmp")
    again("test/cat/0000.png", "test/cat/twice.bmp")
    again("train/dog/0005.png", "train/dog/twice.bmp")
    again("train/dog/0005.png", "train/dog/thrice.bmp")
    found = checked(photos)
    counts = {key: found["duplicates"][key] for key in ("leaked", "in_train", "in_test")}
    assert counts == {"leaked": 2, "in_train": 2, "in_test": 1}
    assert found["duplicates"]["contradicting"] == 2
    pair = [str(photos / "test/cat/again.bmp"), str(photos / "train/cat/0000.png")]
    assert pair in found["duplicates"]["pairs"]
    leak, dispute, *copies = (text for text in found["warnings"] if "gate" not in text)
    assert leak.startswith("leakage: 2 of the test images")
    assert pair[0] in leak and pair[1] in leak
    assert "0001.png" in dispute and "test/dog/again.bmp" in dispute
    assert len(copies) == 2


def test_copies_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, (60, 2), dtype=np.uint8)
    labels, tested = rng.integers(0, 2, 60), rng.random(60) < 0.4
    found = duplicates(keys, labels, tested)
    same = (keys[:, None] == keys[None]).all(2)
    assert found.leaked == sum(bool(same[i, ~tested].any()) for i in np.flatnonzero(tested))
    for part, count in ((~tested, found.in_train), (tested, found.in_test)):
        assert count == part.sum() - len({tuple(row) for row in keys[part].tolist()})
    assert found.contradicting == sum(len({*labels[same[i]].tolist()}) > 1 for i in range(60))
    for i, j in found.pairs:
        assert same[i, j] and tested[i] and not tested[j]
    i, j = found.disputed
    assert same[i, j] and labels[i] != labels[j]


def test_no_images_are_no_copies() -> None:
    nothing = duplicates(np.zeros((0, 16), np.uint8), np.zeros(0, np.int64), [])
    assert (nothing.leaked, nothing.in_train, nothing.in_test) == (0, 0, 0)


def test_classes_of_very_different_size(photos: Path) -> None:
    for path in sorted((photos / "train" / "cat").iterdir())[50:]:
        path.unlink()
    fill(photos / "train" / "dog", 1000, 5)
    uneven, few = checked(photos)["warnings"][:2]
    assert "'dog' has 1,000 images to train on and 'cat' has 50" in uneven
    assert few.startswith("1 of 2 classes have fewer than 100 images")


def test_thousands_of_classes(tmp_path: Path) -> None:
    """More than a preset's limits leave an image of; the advice lifts them."""
    content = (tmp_path / "seed.png", (tmp_path / "other.png"))
    for path, seed in zip(content, (1, 2), strict=True):
        Image.fromarray(pixels(seed, 24, 24, 3)).save(path)
    root = tmp_path / "photos"
    for number in range(1500):
        folder = root / f"{number:04}"
        folder.mkdir(parents=True)
        for copy in range(5):
            os.link(content[copy % 2], folder / f"{copy}.png")
    found = checked(root)
    assert len(found["classes"]) == 1500
    assert found["settings"]["preset"] == "subset"
    assert found["settings"]["limit_test"] == found["splits"]["test"] == 1500
    shown = advprune("data", "check", root)
    assert "and 1,494 between" in shown.out
    assert shown.out.count("\n") < 40


# What suits them --------------------------------------------------------------------------------


def test_distance_between_classes_against_all_pairs() -> None:
    images = torch.from_numpy(pixels(3, 20, 1, 3, 3))
    labels = torch.arange(20) % 3
    flat = images.flatten(1).double()
    apart = (flat[:, None] - flat[None]).abs().amax(2)
    apart[labels[:, None] == labels[None]] = 999
    assert separation(images, labels) == pytest.approx(float(apart.min()) / 255)
    assert separation(images, torch.zeros(20)) == 1.0


def test_eps_stays_below_what_tells_classes_apart(tmp_path: Path) -> None:
    """Two classes that differ by 12 of 255: 8/255 would let either become the other."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 100), ("light", 112)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(700):
            noise = rng.integers(0, 2, (24, 24, 3))
            image = np.full((24, 24, 3), level) + (noise if name == "dark" else -noise)
            Image.fromarray(image.astype(np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    found = checked(tmp_path / "photos")
    nearest = found["separation"] * 255
    assert 10 <= nearest <= 12
    assert found["settings"]["eps"] == f"{int(nearest / 3)}/255"
    assert "8/255, is too near" in found["reasons"]["eps"]


@pytest.mark.parametrize(
    ("size", "mode", "settings"),
    [
        ((8, 8), "L", {"preset": "digits", "eps": "0.15"}),
        ((28, 28), "L", {"preset": "subset", "eps": "0.1"}),
        ((32, 32), "RGB", {"preset": "subset", "eps": "8/255"}),
        ((100, 80), "RGB", {"preset": "subset", "eps": "8/255", "image_size": 64}),
    ],
)
def test_settings_follow_the_images(
    size: tuple[int, int], mode: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(650):
            image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image[0, 0] = 255 * (name == "dog")  # far apart, so that the usual eps will do
            Image.fromarray(image).convert(mode).save(tmp_path / "photos" / name / f"{number}.bmp")
    found = checked(tmp_path / "photos")
    kept = {key: value for key, value in found["settings"].items() if "." not in key}
    assert kept == settings
    sizes = {value for key, value in found["settings"].items() if key.endswith("batch_size")}
    assert sizes == ({64} if settings["preset"] == "subset" else set())
