"""torchvision's data sets, from small files in their real formats; nothing is downloaded."""

import hashlib
import pickle
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from image_folders import pixels
from PIL import Image

from advprune import data
from advprune.errors import BadData, NotFound, Refused

TRAIN, TEST = 80, 40


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


class OldDtype:
    """Pickles a dtype as NumPy did in 2009, which NumPy 2.4 warns about."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1)


def check(found: data.ImageSet, images: np.ndarray, labels: np.ndarray) -> None:
    """Every split holds what the files hold; images uint8 (N, C, H, W)."""
    for split in found.splits.values():
        order = split.indices.numpy()
        np.testing.assert_array_equal(split.images.numpy(), images[order])
        np.testing.assert_array_equal(split.labels.numpy(), labels[order])
        assert split.images.is_contiguous()
    assert sorted(torch.cat([s.indices for s in found.splits.values()]).tolist()) == list(
        range(len(labels))
    )
    assert int(found.test.indices.min()) == TRAIN


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 20)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int) -> None:
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[name]
    dataset = getattr(torchvision.datasets, kind)
    folder = tmp_path / name / dataset.base_folder
    folder.mkdir(parents=True)
    flat = pixels(0, TRAIN + TEST, 3072)
    labels = np.arange(TRAIN + TEST) % classes
    key = "labels" if name == "cifar10" else "fine_labels"
    files = {
        "train_list": ("train_file", slice(TRAIN)),
        "test_list": ("test_file", slice(TRAIN, None)),
    }
    for attribute, (file, part) in files.items():
        content = {"data": flat[part], key: labels[part].tolist(), "dtype": OldDtype()}
        (folder / file).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(dataset, attribute, [[file, md5(folder / file)]])
    meta = folder / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: [f"c{i}" for i in range(classes)]}))
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(meta)})

    found = data.load(name, data_dir=tmp_path)
    check(found, flat.reshape(-1, 3, 32, 32), labels)
    assert found.classes == tuple(f"c{i}" for i in range(classes))
    assert (found.name, found.augment) == (name, "crop-flip")

    # A changed pickle is not read but asked for again.
    (folder / "train_file").write_bytes(b"changed")
    with pytest.raises(NotFound, match=f"{name}: .*unreachable.*put {name[:5]}-"):
        data.load(name, data_dir=tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(0, TRAIN + TEST, 3, 32, 32)
    labels = np.arange(TRAIN + TEST) % 10
    (tmp_path / "svhn").mkdir()
    entries = {}
    for name, part in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        path = tmp_path / "svhn" / f"{name}_32x32.mat"
        # The files call the digit 0 "10".
        stored = np.where(labels[part] == 0, 10, labels[part]).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images[part].transpose(2, 3, 1, 0), "y": stored})
        entries[name] = ["http://nowhere", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", entries)
    found = data.load("svhn", data_dir=tmp_path)
    check(found, images, labels)
    assert found.classes == tuple("0123456789")
    assert found.augment == "crop"


def idx(path: Path, array: np.ndarray) -> None:
    """Write LeCun's format: two zeros, the type (8: bytes), the dimensions, the data."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = pixels(0, TRAIN + TEST, 1, 28, 28)
    labels = np.arange(TRAIN + TEST) % 10
    folder.mkdir(parents=True)
    for name, part in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        idx(folder / f"{name}-images-idx3-ubyte", images[part, 0])
        idx(folder / f"{name}-labels-idx1-ubyte", labels[part])
    return images, labels


@pytest.mark.parametrize(
    ("name", "kind", "augment"),
    [("mnist", "MNIST", "crop"), ("fashion_mnist", "FashionMNIST", "crop-flip")],
)
def test_mnist(tmp_path: Path, name: str, kind: str, augment: str) -> None:
    images, labels = write_mnist(tmp_path / name / kind / "raw")
    found = data.load(name, data_dir=tmp_path)
    check(found, images, labels)
    assert len(found.classes) == 10
    assert found.augment == augment
    again = data.load(name, data_dir=tmp_path)
    assert again.digest == found.digest
    assert data.load(name, data_dir=tmp_path, limit_train=60).digest != found.digest


def test_mnist_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "mnist" / "MNIST" / "raw"
    _, labels = write_mnist(folder)
    path = folder / "train-labels-idx1-ubyte"
    idx(path, np.where(np.arange(TRAIN) == 7, 10, labels[:TRAIN]))
    with pytest.raises(BadData, match=r"mnist: label 10 of image 7 lies outside \[0, 9\]"):
        data.load("mnist", data_dir=tmp_path)
    idx(path, labels[: TRAIN - 1])
    with pytest.raises(BadData, match="mnist: 120 images and 119 labels"):
        data.load("mnist", data_dir=tmp_path)
    idx(path, np.minimum(labels[:TRAIN], 8))
    with pytest.raises(BadData, match=r"train split .* has no image of class '9 - nine'"):
        data.load("mnist", data_dir=tmp_path)
    for broken in (b"", path.read_bytes()[:20], b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises((BadData, NotFound), match=str(tmp_path / "mnist")):
            data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist"])
def test_failed_download_says_where_to_put_the_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound) as refusal:
        data.load(name, data_dir=tmp_path)
    message = str(refusal.value)
    assert refusal.value.exit_code == 66
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    assert message.endswith(f"into {tmp_path / name} (--data-dir)")
    assert not list(tmp_path.iterdir()), "nothing may be left of a download that failed"
    with pytest.raises(Refused, match=f"{name}: --image-size 64 is only for"):
        data.load(name, data_dir=tmp_path, reading=data.Reading(64))


def write_imagenet(root: Path, per_class: int = 20) -> None:
    wnids = ["n01440764", "n01443537"]
    names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    for half in ("train", "val"):
        for i, wnid in enumerate(wnids):
            folder = root / half / wnid
            folder.mkdir(parents=True)
            for j in range(per_class):
                image = Image.fromarray(pixels(100 * i + j, 30 + j, 40, 3))
                image.convert(("RGB", "L", "CMYK")[j % 3]).save(folder / f"{j:03}.JPEG")
    torch.save((names, []), root / "meta.bin")


def test_imagenet(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet")
    found = data.load("imagenet", data_dir=tmp_path, reading=data.Reading(32))
    assert found.classes == ("tench, Tinca tinca", "goldfish")
    assert found.shape == (3, 32, 32)
    assert {k: len(v) for k, v in found.splits.items()} == {
        "train": 32,
        "val": 4,
        "calib": 4,
        "test": 40,
    }
    assert found.augment == "crop-flip"
    default = data.load("imagenet", data_dir=tmp_path, limit_train=6, limit_test=2)
    assert default.shape == (3, 224, 224)


@pytest.mark.parametrize("image_size", [None, 32])
def test_extra_images_are_read_like_imagenet(tmp_path: Path, image_size: int | None) -> None:
    write_imagenet(tmp_path / "imagenet")
    folder = tmp_path / "more" / "tench, Tinca tinca"
    folder.mkdir(parents=True)
    for mode in ("RGB", "L", "CMYK"):
        Image.fromarray(pixels(7, 50, 60, 3)).convert(mode).save(folder / f"{mode}.jpeg")
    found = data.load(
        "imagenet", data_dir=tmp_path, reading=data.Reading(image_size), extra=tmp_path / "more"
    ).extra
    assert found is not None
    assert found.images.shape == (3, 3, image_size or 224, image_size or 224)


def test_extra_images_have_the_size_and_classes_of_a_set_with_one_size(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist" / "MNIST" / "raw")
    (tmp_path / "more" / "7 - seven").mkdir(parents=True)
    path = tmp_path / "more" / "7 - seven" / "0.png"
    image = pixels(7, 28, 28)
    Image.fromarray(image).save(path)
    found = data.load("mnist", data_dir=tmp_path, extra=tmp_path / "more").extra
    assert found is not None
    np.testing.assert_array_equal(found.images.numpy(), image[None, None])
    assert found.labels.tolist() == [7]
    assert found.indices.tolist() == [TRAIN + TEST]
    Image.fromarray(image[:27]).save(path)
    with pytest.raises(BadData, match=r"0\.png: is 28x27 in a set of 28x28 images; scale it"):
        data.load("mnist", data_dir=tmp_path, extra=tmp_path / "more")


def test_imagenet_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_imagenet(tmp_path / "imagenet")
    monkeypatch.setattr("advprune.data.decode.free_memory", lambda: 10**7)
    with pytest.raises(Refused, match=r"80 images of 224x224 need 0\.0 GB.*--limit-train"):
        data.load("imagenet", data_dir=tmp_path)
    data.load("imagenet", data_dir=tmp_path, limit_train=6, limit_test=2)


def test_imagenet_is_never_downloaded(tmp_path: Path) -> None:
    for call in (
        lambda: data.load("imagenet", data_dir=tmp_path),
        lambda: data.fingerprint("imagenet", tmp_path, None),
    ):
        with pytest.raises(NotFound, match=r"imagenet: there is no folder .*ILSVRC2012_devkit"):
            call()
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(NotFound, match=r"devkit_t12\.tar\.gz is not present"):
        data.load("imagenet", data_dir=tmp_path)


def test_fingerprint_changes_when_the_files_arrive(tmp_path: Path) -> None:
    absent = data.fingerprint("mnist", tmp_path, None)
    assert absent != data.fingerprint("fashion_mnist", tmp_path, None)
    write_mnist(tmp_path / "mnist" / "MNIST" / "raw")
    present = data.fingerprint("mnist", tmp_path, None)
    data.load("mnist", data_dir=tmp_path)
    assert data.fingerprint("mnist", tmp_path, None) == present != absent
