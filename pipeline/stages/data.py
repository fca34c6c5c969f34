"""Stage 0: decoded, checked and split images, so that no later stage reads a folder again."""

import os
from typing import Any

from advprune.data import Loaded, fingerprint, load, save, sizes
from advprune.errors import BadData
from advprune.files import write
from export.calibrate import FEWEST_IMAGES
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage

SKIPPED = "skipped.txt"


def load_images(recipe: Recipe) -> Loaded:
    """The images of a run.

    Raises:
        Refused and its kinds: as `advprune.data.load`.
        BadData: there will be too few to calibrate with, better said now than after training.
    """
    images = load(**_choice(recipe), extra=recipe.extra_data, stream=recipe.stream)
    count = sum(len(split) for split in (images.train, images.val, images.calib))
    demand_calibration(recipe.data, count, len(images.calib))
    return images


def sample_images(recipe: Recipe, most: int) -> tuple[Loaded, dict[str, int]]:
    """What a plan is made of: images of each split, and how many there are of it.

    Of a streamed set, which may take hours to decode, only so many first images are read.

    Raises:
        Refused and its kinds: as `load_images`, of what is read.
    """
    if not recipe.stream:
        images = load_images(recipe)
        return images, {name: len(part) for name, part in images.parts.items()}
    choice = _choice(recipe)
    counts = sizes(**choice)
    count = sum(counts[name] for name in ("train", "val", "calib"))
    demand_calibration(recipe.data, count, counts["calib"])
    return load(**choice, extra=recipe.extra_data, stream=recipe.stream, most=most), counts


def _choice(recipe: Recipe) -> dict[str, Any]:
    """Which images, in the words of `advprune.data`."""
    return {
        "spec": recipe.data,
        "data_dir": recipe.data_dir,
        "split_seed": recipe.split_seed,
        "limit_train": recipe.limit_train,
        "limit_test": recipe.limit_test,
        "reading": recipe.reading(),
    }


def demand_calibration(data: str, count: int, calibrating: int) -> None:
    """Raises BadData where too few of `count` images to train on are there to calibrate with."""
    if calibrating < FEWEST_IMAGES:
        raise BadData(
            f"{data}: {count} images to train on leave {calibrating} to calibrate 8 "
            f"bits with, fewer than {FEWEST_IMAGES}; give at least {8 * FEWEST_IMAGES} "
            "(add images or raise --limit-train)"
        )


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        images = load_images(context.recipe)
        save(images, context.out)
        counts = {name: len(part) for name, part in images.parts.items()}
        if images.skipped:
            lines = "".join(f"{line}\n" for line in images.skipped)
            write(context.out / SKIPPED, os.fsencode(lines))  # paths need not be text
            counts["skipped"] = len(images.skipped)
        return {**counts, "classes": len(images.classes), "digest": images.digest}

    config = {
        "data": recipe.data.partition(":")[0],
        "fingerprint": fingerprint(
            recipe.data, recipe.data_dir, recipe.image_size, recipe.extra_data
        ),
        "split_seed": recipe.split_seed,
        "limit_train": recipe.limit_train,
        "limit_test": recipe.limit_test,
        "image_size": recipe.image_size,
        "convert": recipe.convert,
        "skip_bad": recipe.skip_bad,
        **({"stream": True} if recipe.stream else {}),
    }
    return Stage("data", (), config, run)
