"""Extra images are trained on and nothing else: read like the data set, never measured with."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import COUNT, fill, make, make_extra, source_of
from PIL import Image
from safetensors.torch import load_file, save_file

from advprune import data
from advprune.data.extra import read_extra
from advprune.data.imageset import digest
from advprune.errors import BadData, NotFound
from pipeline.recipe import Recipe
from pipeline.stage import Context
from pipeline.stages.data import stage
from pipeline.watch import Silent

CLASSES = ("Bee", "ant", "zebra")  # of `make`, in their order
IMAGES = 2 * len(CLASSES) * COUNT


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return make(tmp_path / "set")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_extra(tmp_path / "more")


def load(spec: str, extra: Path | None, **options: Any) -> data.ImageSet:
    return data.load(spec, data_dir=Path("nowhere"), extra=extra, **options)


def extra_of(images: data.ImageSet) -> data.Split:
    assert images.extra is not None
    return images.extra


# What is read -----------------------------------------------------------------------------------


def test_pixels_labels_and_identities(spec: str, folder: Path) -> None:
    images = load(spec, folder)
    extra = extra_of(images)
    paths = [path for name in ("ant", "zebra") for path in sorted((folder / name).rglob("*.*"))]
    assert sorted(extra.indices.tolist()) == list(range(IMAGES, IMAGES + len(paths)))
    for image, label, index in zip(extra.images, extra.labels, extra.indices, strict=True):
        path = paths[int(index) - IMAGES]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), Image.open(path))
        assert CLASSES[int(label)] == path.relative_to(folder).parts[0]
    # A third of the images are ants, so a third of any beginning is.
    for first in range(3, len(paths), 3):
        assert (extra.labels[:first] == 1).sum() == first // 3


def test_the_splits_are_what_they_were(spec: str, folder: Path) -> None:
    without, images = load(spec, None), load(spec, folder)
    assert without.extra is None
    assert images.parts.keys() - images.splits.keys() == {"extra"}
    assert without.parts.keys() == images.splits.keys()
    for name, split in without.splits.items():
        for field, tensor in vars(split).items():
            assert torch.equal(getattr(images.splits[name], field), tensor)


def test_limits_leave_them_alone(spec: str, folder: Path) -> None:
    whole, part = (
        extra_of(images)
        for images in (load(spec, folder), load(spec, folder, limit_train=9, limit_test=3))
    )
    for field, tensor in vars(whole).items():
        assert torch.equal(getattr(part, field), tensor)


def test_they_are_resized_with_the_data_set(spec: str, folder: Path) -> None:
    Image.new("RGB", (33, 21)).save(folder / "ant" / "0.png")
    assert extra_of(load(spec, folder, reading=data.Reading(6))).images.shape[1:] == (3, 6, 6)


def test_beside_the_shipped_digits(tmp_path: Path) -> None:
    fill(tmp_path / "more" / "7", (8, 8))
    extra = extra_of(load("digits", tmp_path / "more"))
    assert extra.labels.tolist() == [7] * COUNT
    assert extra.indices.min() == 1797


def test_they_move_with_the_set(spec: str, folder: Path) -> None:
    moved = extra_of(load(spec, folder).to("meta"))
    assert all(tensor.device.type == "meta" for tensor in vars(moved).values())


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    # CIFAR-100 has one.
    fill(tmp_path / "train", (2, 2))
    toy = replace(source_of("bus", "train"), read=lambda _: torch.ones(COUNT, 1, 2, 2).byte())
    assert read_extra(tmp_path, toy, 0, []).labels.tolist() == [1] * COUNT


# What tells that it changed ---------------------------------------------------------------------


def test_the_digest_covers_them(spec: str, folder: Path) -> None:
    images = load(spec, folder)
    extra = extra_of(images)

    def of(**parts: data.Split) -> str:
        return digest(images.classes, images.augment, images.splits | parts)

    found = [
        of(),
        of(extra=extra),
        of(extra=replace(extra, images=255 - extra.images)),
        of(extra=replace(extra, labels=extra.labels.flip(0))),
        of(extra=replace(extra, indices=extra.indices + 1)),
    ]
    assert len(set(found)) == len(found)
    assert found[:2] == [load(spec, None).digest, images.digest]
    assert load(spec, folder, split_seed=0).digest == images.digest


def test_the_fingerprint_follows_the_files(spec: str, folder: Path) -> None:
    def now(extra: Path | None = folder, size: int | None = None) -> str:
        return data.fingerprint(spec, Path("nowhere"), size, extra)

    found = [data.fingerprint(spec, Path("nowhere"), None), now(), now(size=16)]
    assert now(None) == found[0]
    path = folder / "ant" / "0.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    found.append(now())
    path.rename(folder / "zebra" / "new.png")
    found.append(now())
    (folder / "zebra" / "new.png").unlink()
    found.append(now())
    assert len(set(found)) == len(found)
    (folder / "ant" / "notes.txt").write_text("not an image")
    assert now() == found[-1]
    shutil.copytree(folder, folder.with_name("moved"))
    assert now(folder.with_name("moved")) == found[-1]
    with pytest.raises(NotFound, match=r"--extra-data: there is no folder .*none; check the path"):
        now(folder / "none")


# What is kept -----------------------------------------------------------------------------------


def test_they_are_stored(tmp_path: Path, spec: str, folder: Path) -> None:
    images = load(spec, folder)
    data.save(images, tmp_path / "stored")
    again = data.read(tmp_path / "stored")
    assert again.digest == images.digest
    for field, tensor in vars(extra_of(images)).items():
        assert torch.equal(getattr(extra_of(again), field), tensor)
    data.save(load(spec, None), tmp_path / "stored")
    assert data.read(tmp_path / "stored").extra is None


def test_stored_ones_that_were_changed_are_refused(tmp_path: Path, spec: str, folder: Path) -> None:
    images = load(spec, folder)
    path = tmp_path / "stored" / "data.safetensors"

    def refused_with(message: str, **changes: torch.Tensor | None) -> None:
        data.save(images, path.parent)
        tensors = load_file(path)
        changed = tensors | {f"extra.{field}": tensor for field, tensor in changes.items()}
        save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
        with pytest.raises(BadData, match=message):
            data.read(path.parent)

    extra = extra_of(images)
    refused_with("extra.labels is missing", labels=None)
    refused_with("digest is", images=None, labels=None, indices=None)
    refused_with("digest is", labels=extra.labels.flip(0))
    refused_with("extra: label 3 of image 0", labels=torch.full_like(extra.labels, 3))
    refused_with("occurs more than once", indices=extra.indices - IMAGES)
    refused_with(r"extra.images are \(3, 8, 9\)", images=extra.images[..., 1:].contiguous())


@pytest.mark.parametrize("with_extra", [True, False])
def test_the_data_stage_counts_and_stores_them(tmp_path: Path, with_extra: bool) -> None:
    fill(tmp_path / "more" / "7", (8, 8))
    recipe = Recipe(extra_data=tmp_path / "more" if with_extra else None)
    metrics = stage(recipe).run(Context(recipe, {}, tmp_path / "out", Silent()))
    assert metrics.get("extra") == (COUNT if with_extra else None)
    assert json.loads((tmp_path / "out" / "data.json").read_text())["digest"] == metrics["digest"]
    assert (data.read(tmp_path / "out").extra is not None) == with_extra
