"""What was saved is read back bit by bit, and nothing else is accepted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from advprune import data
from advprune.data.imageset import Split, digest
from advprune.errors import BadData, CannotCreate, NotFound


@pytest.fixture(scope="module")
def digits() -> data.ImageSet:
    return data.load("digits", data_dir=Path("nowhere"), limit_train=200, limit_test=40)


def test_round_trip(tmp_path: Path, digits: data.ImageSet) -> None:
    data.save(digits, tmp_path / "new" / "folder")
    again = data.read(tmp_path / "new" / "folder")
    for field in ("name", "classes", "augment", "digest"):
        assert getattr(again, field) == getattr(digits, field)
    for name, split in digits.splits.items():
        for field, tensor in vars(split).items():
            other = getattr(again.splits[name], field)
            assert other.dtype == tensor.dtype
            assert torch.equal(other, tensor)


def test_same_set_same_bytes(tmp_path: Path, digits: data.ImageSet) -> None:
    data.save(digits, tmp_path / "a")
    data.save(data.read(tmp_path / "a"), tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["data.json", "data.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["data.json", "data.safetensors"])
def test_missing_file(tmp_path: Path, digits: data.ImageSet, name: str) -> None:
    data.save(digits, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(NotFound, match=name):
        data.read(tmp_path)


@pytest.mark.parametrize("name", ["data.json", "data.safetensors"])
def test_every_flipped_bit_and_cut_is_noticed(
    tmp_path: Path, digits: data.ImageSet, name: str
) -> None:
    data.save(digits, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    # The name of the set is a label for people; the digest does not cover it.
    label = whole.find(b'"digits"') if name == "data.json" else -1
    for k in range(60):
        place = k * (len(whole) - 1) // 60
        broken = bytearray(whole)
        broken[place] ^= 1 << k % 7
        if label <= place < label + 8 and label >= 0:
            continue
        path.write_bytes(broken if k % 2 else whole[:place])
        with pytest.raises(BadData, match=str(tmp_path)):
            data.read(tmp_path)


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("val.labels"), "val.labels is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is missing or unknown"),
        (lambda t: t.update({"val.labels": t["val.labels"].int()}), "val.labels is torch.int32"),
        (lambda t: t.update({"test.images": t["test.images"].float()}), "torch.float32"),
        (lambda t: t.update({"test.images": t["test.images"][:, 0]}), "with 4 dimensions"),
        (
            lambda t: t.update({"calib.indices": t["calib.indices"][1:]}),
            "calib.indices has 19 rows",
        ),
        (lambda t: t.update({"calib.images": t["calib.images"][..., 1:]}), "those of val"),
        (lambda t: t["test.labels"].__setitem__(3, 10), "test: label 10 of image 3"),
        (lambda t: t["test.labels"].__setitem__(3, -1), "test: label -1 of image 3"),
        (lambda t: t["train.images"].__setitem__((0, 0, 0, 0), 99), "digest is"),
        (
            lambda t: t.update({k: v[:0] for k, v in t.items() if k.startswith("test.")}),
            "has 0 rows",
        ),
    ],
)
def test_unfit_tensors(tmp_path: Path, digits: data.ImageSet, change: Change, message: str) -> None:
    data.save(digits, tmp_path)
    path = tmp_path / "data.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(BadData, match=message):
        data.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": "flip"}, "augment is 'flip'"),
        ({"classes": ["0"]}, "two names or more"),
        ({"classes": list(range(10))}, "two names or more"),
        ({"classes": "0123456789"}, "classes is '0123456789', not a list"),
        ({"name": 3}, "name is 3, not a str"),
        ({"more": 3}, "must hold exactly"),
        ({"augment": "crop"}, "digest is"),
        ({"classes": list("abcdefghij")}, "digest is"),
    ],
)
def test_unfit_words(tmp_path: Path, digits: data.ImageSet, change: dict, message: str) -> None:
    data.save(digits, tmp_path)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadData, match=message):
        data.read(tmp_path)
    path.write_text("[]")
    with pytest.raises(BadData, match="must hold exactly"):
        data.read(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(BadData, match=r"cannot be read .*recursion"):
        data.read(tmp_path)


def test_shared_identities_are_refused(tmp_path: Path, digits: data.ImageSet) -> None:
    train = digits.train
    val = Split(train.images[:30].clone(), train.labels[:30].clone(), train.indices[:30].clone())
    leaky = replace(digits, val=val)
    found = digest(digits.classes, digits.augment, leaky.splits)
    data.save(replace(leaky, digest=found), tmp_path)
    with pytest.raises(BadData, match="more than once"):
        data.read(tmp_path)


def test_folder_that_cannot_be_made(tmp_path: Path, digits: data.ImageSet) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreate, match="file"):
        data.save(digits, tmp_path / "file" / "below")


def test_write_that_fails(tmp_path: Path, digits: data.ImageSet) -> None:
    (tmp_path / "data.json").mkdir()
    with pytest.raises(CannotCreate, match="Is a directory"):
        data.save(digits, tmp_path)
