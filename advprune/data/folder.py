"""A folder of the user's own images, one folder per class (torchvision's ImageFolder layout).

Either PATH/train/<class>/... and PATH/test/<class>/..., or PATH/<class>/..., of which 20 % become
the test set. Classes are numbered in the order of their names. Other files are left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from advprune.data import files
from advprune.data.decode import decode, fetch, probe
from advprune.data.record import record
from advprune.data.source import Labelled, Reading, Source
from advprune.errors import BadData, Refused

NAMES = {
    "folder:PATH": "your own images: PATH/train/<class>/* and PATH/test/<class>/*, or one split"
}

PREFIX = "folder:"


@dataclass(frozen=True)
class Listing(Labelled):
    """The files of a folder, none of them opened: one path for each label."""

    paths: Sequence[Path]


def open_source(spec: str, data_dir: Path, reading: Reading) -> Source:
    """List the folder; images are decoded when they are fetched.

    Raises:
        NotFound: there is no such folder.
        BadData: the layout is not as above, a class is empty, or the first image is unfit.
    """
    found = listing(spec)
    paths, form = found.paths, probe(found.paths, reading)
    return Source(
        name=found.name,
        classes=found.classes,
        labels=found.labels,
        train_count=found.train_count,
        # Small or grey images are digits or symbols as often as not, which a flip would change.
        augment="crop-flip" if form.mode == "RGB" and min(form.size) >= 24 else "none",
        fetch=lambda positions: fetch([paths[i] for i in positions.tolist()], form, reading),
        read=partial(decode, form=form, reading=reading),
        record=lambda positions: record(
            _root(spec), [paths[i] for i in positions.tolist()], form, reading
        ),
    )


def listing(spec: str) -> Listing:
    """Classes and files of a folder.

    Raises:
        NotFound, BadData: as `open_source`, but no image is looked at.
    """
    root = _root(spec)
    halves = [root / name for name in ("train", "test") if (root / name).is_dir()]
    if len(halves) == 1:
        missing = "test" if halves[0].name == "train" else "train"
        raise BadData(f"{root}: has {halves[0].name}/ but no {missing}/; add it")
    train = _classes(halves[0] if halves else root)
    test = _classes(halves[1]) if halves else {}
    if halves and train.keys() != test.keys():
        name = min(train.keys() ^ test.keys())
        here, there = halves if name in train else halves[::-1]
        raise BadData(
            f"{here}: has class {name!r}, which {there} lacks; give both the same classes"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for part in (train, test):
        for label, found in enumerate(part.values()):
            paths += found
            labels += [label] * len(found)
    return Listing(
        name=f"{PREFIX}{root.resolve().name}",
        classes=tuple(train),
        labels=torch.tensor(labels),
        train_count=sum(map(len, train.values())) if halves else None,
        paths=paths,
    )


def fingerprint(spec: str, data_dir: Path) -> str:
    root = _root(spec)
    return files.identity(root, files.images_below(root))


def path_of(spec: str) -> Path:
    """The folder as the user named it."""
    return Path(spec.removeprefix(PREFIX)).expanduser()


def _root(spec: str) -> Path:
    text = spec.removeprefix(PREFIX)
    if not text:
        raise Refused(f"{spec}: names no folder; write {PREFIX}PATH")
    return files.root_of_classes(Path(text), spec)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class, in the order of the class names."""
    classes = files.classes_in(folder)
    if len(classes) < 2:
        found = f"only the class folder {min(classes)!r}" if classes else "no class folders"
        raise BadData(f"{folder}: has {found}; give one folder per class, at least two")
    return classes
