"""Extra images to train on, with labels or pseudo-labels: a folder PATH/<class>/*.

HYDRA (Sehwag et al. 2020) trains with them, a batch beside each batch of the data set, as Carmon et
al. (2019) proposed: 500,000 photographs from the web, labelled by a network, for CIFAR-10. Nothing
is ever measured on them, and nothing that is measured may be among them.
"""

import hashlib
import textwrap
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from advprune.data import files
from advprune.data.imageset import Split
from advprune.data.source import Source
from advprune.data.splits import spread
from advprune.errors import BadData
from advprune.repro import derive

_OPTION = "--extra-data"


def read_extra(folder: Path, source: Source, seed: int, held_out: Iterable[Split]) -> Split:
    """All images of a folder, in the form of a data set, with identities after all of its own.

    Args:
        folder: holds one folder for each class, called as the data set calls it; some may lack.
        source: the data set.
        seed: decides the order, like that of the splits.
        held_out: what is measured or calibrated on.

    Raises:
        NotFound: there is no such folder.
        BadData: a class that the data set does not have, no images, an image that is unfit or
            equal to one of `held_out`.
        Refused: the images would not fit into memory.
    """
    root = files.root_of_classes(folder, _OPTION)
    classes = files.classes_in(root)
    _check_names(root, classes, source)
    paths = [path for images in classes.values() for path in images]
    labels = torch.tensor(
        [source.classes.index(name) for name, images in classes.items() for _ in images]
    )
    order = spread(labels, torch.arange(len(labels)), derive(seed, "split", "extra"))
    images = source.read([paths[i] for i in order.tolist()])
    leaked = order[_among(images, held_out)]
    if len(leaked):
        raise BadData(
            f"{paths[int(leaked.min())]}: is an image that {source.name} validates, calibrates or "
            f"tests with, one of {len(leaked)} such in {_OPTION}; remove them"
        )
    return Split(images, labels[order], len(source.labels) + order)


def extra_identity(folder: Path) -> str:
    """SHA-256 over name, size and modification time of each image file, none of which is read.

    Raises:
        NotFound: there is no such folder.
    """
    root = files.root_of_classes(folder, _OPTION)
    return files.identity(root, files.images_below(root))


def _check_names(root: Path, names: Collection[str], source: Source) -> None:
    unknown = [name for name in names if name not in source.classes]
    halves = [f"{name}/" for name in unknown if name in ("train", "test")]
    if halves:
        raise BadData(
            f"{root}: has {' and '.join(halves)}; give the folder that holds the class folders"
        )
    if not names:
        raise BadData(f"{root}: has no images in class folders; put them into {root}/<class>/")
    # ImageNet has two classes that are both called "crane".
    for name in names:
        count = source.classes.count(name)
        if count != 1:
            known = textwrap.shorten(", ".join(source.classes), 120, placeholder=" ...")
            raise BadData(
                f"{root / name}: {source.name} has {count or 'no'} classes called {name!r}; "
                f"rename or remove the folder (classes: {known})"
            )


def _among(images: Tensor, others: Iterable[Split]) -> Tensor:
    """bool (N,), which of the images are equal to one of the others, byte by byte."""
    # Digests, since the images themselves may fill the memory.
    known = {key for other in others for key in _keys(other.images)}
    return torch.tensor([key in known for key in _keys(images)])


def _keys(images: Tensor) -> Iterator[bytes]:
    return (hashlib.sha256(image).digest() for image in images.numpy())
