"""Promise: a plan counts the images of a stream and reads a few, and so need not wait for all."""

import math
from pathlib import Path

import pytest
import torch
from image_folders import make, pixels
from PIL import Image
from tiny_run import advprune, refusal

from advprune import data
from advprune.data.registry import open_source
from advprune.data.source import AS_IT_IS
from advprune.data.splits import split
from export.calibrate import FEWEST_IMAGES
from pipeline.probe import PROBED

pytest_plugins = ["bad_input_fixtures"]

SETTINGS = ("model=digits_resnet", "attack_steps=1", "threads=1", "standard.batch_size=64")
QUICK = tuple(word for setting in (*SETTINGS, "standard.epochs=3") for word in ("--set", setting))
PER_CLASS, TESTED = 4 * FEWEST_IMAGES, 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_sample_is_the_beginning_of_every_split(stream: bool, tmp_path: Path) -> None:
    spec = make(tmp_path / "images")
    whole = data.load(spec, data_dir=Path(), stream=stream)
    some = data.load(spec, data_dir=Path(), stream=stream, most=3)
    for name, part in some.splits.items():
        first = whole.splits[name].first(3)
        assert torch.equal(part.indices, first.indices)
        assert torch.equal(part.images, first.images)
    sizes = {name: len(part) for name, part in whole.splits.items()}
    assert data.sizes(spec, data_dir=Path()) == sizes


# The command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of which only what a plan reads can be decoded."""
    root = tmp_path_factory.mktemp("large")
    for half, count in (("train", PER_CLASS), ("test", TESTED)):
        for label, name in enumerate(("ants", "bees")):
            (root / half / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(pixels(i + 10_000 * label, 8, 8))
                image.save(root / half / name / f"{i:04}.png")
    source = open_source(f"folder:{root}", Path(), AS_IT_IS)
    paths = sorted((root / "train").glob("*/*")) + sorted((root / "test").glob("*/*"))
    for positions in split(source, 0, None, None).values():
        for position in positions[PROBED:].tolist():
            paths[position].write_bytes(b"\x89PNG, but no image")
    return root


def test_the_rest_is_counted(folder: Path, empty_folder: Path) -> None:
    words = ("plan", *QUICK, "--stream", "--data", f"folder:{folder}")
    document = advprune(*words, "--gpus", "2", "--json").json
    sizes = data.sizes(f"folder:{folder}", data_dir=Path())
    assert document["images"] == sizes["train"] > PROBED
    assert document["stages"][0]["steps"] == 3 * math.ceil(sizes["train"] / 64)

    forecasts = {stage["name"]: stage for stage in advprune(*words, "--json").json}
    assert forecasts["gate"]["outlook"]["images"] == 2 * TESTED
    assert forecasts["standard"]["seconds"] > 0


@pytest.mark.parametrize(
    "words", [("run", "--stream"), ("plan",), ("plan", "--stream", "--set", "split_seed=1")]
)
def test_what_is_read_must_be_whole(
    words: tuple[str, ...], folder: Path, empty_folder: Path
) -> None:
    shown = advprune(*words, *QUICK, "--data", f"folder:{folder}")
    assert "cannot be" in refusal(shown, 65)


def test_too_few_to_calibrate_with_are_told_before(folder: Path, empty_folder: Path) -> None:
    words = ("plan", *QUICK, "--stream", "--data", f"folder:{folder}", "--limit-train", "40")
    assert "calibrate" in refusal(advprune(*words), 65)
