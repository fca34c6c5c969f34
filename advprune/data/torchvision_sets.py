"""The data sets that torchvision reads, each in a folder of its own under the data directory.

They are downloaded when absent, except ImageNet, whose archives only a user can get. CIFAR comes as
pickles, which torchvision unpickles only after their MD5 matched its own list; nothing else in the
folder is unpickled.
"""

import hashlib
import warnings
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advprune.data import files
from advprune.data.decode import Form, decode, fetch
from advprune.data.record import record
from advprune.data.source import Fetched, Reading, Source
from advprune.errors import BadData, NotFound


@dataclass(frozen=True)
class _Set:
    """How torchvision calls a set, and which files may be put in place by hand."""

    dataset: str
    augment: str
    archives: str
    about: str


_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
_SETS = {
    "cifar10": _Set(
        "CIFAR10",
        "crop-flip",
        "cifar-10-python.tar.gz, unpacked",
        "60,000 photographs, 32x32 colour, 10 classes; downloaded once",
    ),
    "cifar100": _Set(
        "CIFAR100",
        "crop-flip",
        "cifar-100-python.tar.gz, unpacked",
        "60,000 photographs, 32x32 colour, 100 classes; downloaded once",
    ),
    "svhn": _Set(
        "SVHN",
        "crop",
        "train_32x32.mat and test_32x32.mat",
        "99,289 house numbers, 32x32 colour, 10 classes; downloaded once",
    ),
    "mnist": _Set(
        "MNIST",
        "crop",
        f"MNIST/raw/{_IDX}",
        "70,000 handwritten digits, 28x28 grey, 10 classes; downloaded once",
    ),
    "fashion_mnist": _Set(
        "FashionMNIST",
        "crop-flip",
        f"FashionMNIST/raw/{_IDX}",
        "70,000 pieces of clothing, 28x28 grey, 10 classes; downloaded once",
    ),
    "imagenet": _Set(
        "ImageNet",
        "crop-flip",
        "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        "1.3 million photographs, colour, 224x224 unless told, 1,000 classes; bring the archives",
    ),
}
_IMAGENET_SIZE = 224

NAMES = {name: entry.about for name, entry in _SETS.items()}


def open_source(spec: str, data_dir: Path, reading: Reading) -> Source:
    """Read a set; ImageNet's images are decoded when they are fetched.

    Raises:
        NotFound: the files are absent and cannot be downloaded, or do not match their checksum.
        BadData: the files are not in their format.
        Refused: a choice of how to read files, for a set that has none.
    """
    if spec == "imagenet":
        return _imagenet(data_dir, reading.image_size or _IMAGENET_SIZE, reading.skip_bad)
    reading.demand_none(spec, "arrays of one size")
    if spec == "svhn":
        parts = [_opened(spec, data_dir, split=name, download=True) for name in ("train", "test")]
    else:
        parts = [_opened(spec, data_dir, train=train, download=True) for train in (True, False)]
    images = torch.cat([_images(part.data) for part in parts])
    labels = torch.cat([_labels(part.labels if spec == "svhn" else part.targets) for part in parts])
    if len(images) != len(labels):
        raise BadData(
            f"{data_dir / spec}: {len(images)} images and {len(labels)} labels; delete the folder"
        )
    return Source(
        name=spec,
        # SVHN is the one set that does not name its classes, which are the digits.
        classes=tuple(getattr(parts[0], "classes", map(str, range(10)))),
        labels=labels,
        train_count=len(parts[0]),
        augment=_SETS[spec].augment,
        fetch=lambda positions: Fetched(images[positions]),
        read=partial(decode, form=Form.of(images)),
    )


def fingerprint(spec: str, data_dir: Path) -> str:
    """The identity of the stored files, or of their absence before a download.

    Raises:
        NotFound: ImageNet is absent, which is never downloaded.
    """
    root = data_dir / spec
    if not root.is_dir():
        if spec == "imagenet":
            raise _absent(spec, data_dir, f"there is no folder {root}")
        return hashlib.sha256(f"{spec} is absent".encode()).hexdigest()
    return files.identity(root, files.below(root))


def _imagenet(data_dir: Path, size: int, skip_bad: bool) -> Source:
    if not (data_dir / "imagenet").is_dir():
        raise _absent("imagenet", data_dir, f"there is no folder {data_dir / 'imagenet'}")
    parts = [_opened("imagenet", data_dir, split=name) for name in ("train", "val")]
    paths = [Path(path) for part in parts for path, _ in part.samples]
    form = Form("RGB", (size, size))
    # Some of its photographs are grey or CMYK; everyone reads them as colour.
    reading = Reading(size, to_rgb=True, skip_bad=skip_bad)
    return Source(
        name="imagenet",
        classes=tuple(", ".join(names) for names in parts[0].classes),
        labels=torch.cat([_labels(part.targets) for part in parts]),
        train_count=len(parts[0]),
        augment=_SETS["imagenet"].augment,
        fetch=lambda positions: fetch([paths[i] for i in positions.tolist()], form, reading),
        read=partial(decode, form=form, reading=reading),
        record=lambda positions: record(
            data_dir / "imagenet", [paths[i] for i in positions.tolist()], form, reading
        ),
    )


def _opened(spec: str, data_dir: Path, **options: Any) -> Any:
    # torchvision takes seconds to import, and most runs do without it.
    from torchvision import datasets

    root = data_dir / spec
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles of 2009 spell `align=False` as 0, which NumPy 2.4 announces to refuse.
            warnings.filterwarnings("ignore", r"dtype\(\): align should be passed")
            return getattr(datasets, _SETS[spec].dataset)(root, **options)
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        # torchvision makes folders before it knows whether it can fill them.
        below = sorted(root.rglob("*"), reverse=True) if root in new else []
        for folder in (*below, *new):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise _absent(spec, data_dir, " ".join(str(error).split())) from error
    except (ValueError, AssertionError, LookupError, TypeError) as error:
        raise BadData(f"{root}: is not in the format of {spec} ({error}); delete it") from error


def _absent(spec: str, data_dir: Path, why: str) -> NotFound:
    return NotFound(
        f"{spec}: {why}; put {_SETS[spec].archives} into {data_dir / spec} (--data-dir)"
    )


def _images(data: np.ndarray | Tensor) -> Tensor:
    """torchvision's arrays as uint8 (N, C, H, W): MNIST has no channel, CIFAR has it last."""
    images = torch.as_tensor(data)
    if images.dim() == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels(labels: Any) -> Tensor:
    return torch.as_tensor(labels, dtype=torch.int64)
