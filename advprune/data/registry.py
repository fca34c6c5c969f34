"""Data sets by name: list them, load one into memory, tell whether its files changed."""

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from advprune.data import digits, folder, torchvision_sets
from advprune.data.augmentation import READ
from advprune.data.decode import Form
from advprune.data.extra import extra_identity, read_extra
from advprune.data.imageset import Loaded, Split, check_classes, check_labels, digest
from advprune.data.source import AS_IT_IS, Kind, Reading, Recorded, Source
from advprune.data.splits import split
from advprune.data.stream import Stream
from advprune.errors import Refused

_KINDS: tuple[Kind, ...] = (digits, folder, torchvision_sets)


def names() -> list[tuple[str, str]]:
    """Every data set, and one line on it."""
    return [entry for kind in _KINDS for entry in kind.NAMES.items()]


def load(
    spec: str,
    *,
    data_dir: Path,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    reading: Reading = AS_IT_IS,
    extra: Path | None = None,
    stream: bool = False,
    most: int | None = None,
) -> Loaded:
    """Load a data set and split it, see `splits.split`; the same call gives the same digest.

    Args:
        spec: one of `names()`, or `folder:PATH`.
        data_dir: where torchvision keeps its files.
        split_seed: decides the splits and the subsets, apart from the seed of training.
        limit_train: at most so many images for train, validation and calibration together.
        limit_test: at most so many test images.
        reading: of image files; for folders and imagenet.
        extra: a folder PATH/<class>/* of more images to train on, see `read_extra`.
        stream: leave the images to train on in their files, see `Stream`.
        most: of every split only so many first images, a fair sample; no others of it are read.

    Raises:
        Refused: an unknown name, a number out of range, more images than fit into memory, a stream
            of what is in no files, or beside extra images.
        NotFound: the images are not there.
        BadData: an image, a label or the layout is unfit.
    """
    source = open_source(spec, data_dir, reading)
    record = _recording(source, extra) if stream else None
    parted = split(source, split_seed, limit_train, limit_test)
    chosen = {name: positions[:most] for name, positions in parted.items()}
    trained = chosen.pop("train") if record else None

    # One tensor for all splits, which are views of it: large sets are held only once.
    order = torch.cat(list(chosen.values()))
    sizes = [len(positions) for positions in chosen.values()]
    images, bad = source.fetch(order)
    parts = {
        name: Split(pixels, source.labels[positions], positions)
        for (name, positions), pixels in zip(chosen.items(), images.split(sizes), strict=True)
    }
    if bad:
        parts = _without(parts, order[list(bad)])
    skipped, augment = list(bad.values()), source.augment
    train: Split | Stream
    if record and trained is not None:
        found = record(trained)
        augment = "none" if augment == "none" else READ
        train = Stream.of(found, source.labels[trained], trained, Form.of(images), augment == READ)
        skipped += found.bad.values()
    else:
        train = parts.pop("train")
    if skipped and most is None:
        for name, part in {"train": train, **parts}.items():
            where = f"{source.name}: what can be read of the {name} split"
            check_classes(part.labels, source.classes, where, "replace the damaged images")
    if extra is not None:
        parts["extra"] = read_extra(extra, source, split_seed, list(parts.values()))
    return Loaded(
        source.name,
        source.classes,
        train,
        **parts,
        augment=augment,
        digest=digest(source.classes, augment, {"train": train, **parts}),
        skipped=tuple(skipped),
    )


def sizes(
    spec: str,
    *,
    data_dir: Path,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    reading: Reading = AS_IT_IS,
) -> dict[str, int]:
    """How many images each split has, damaged ones among them; arguments and errors as of `load`.

    Files are counted and not read, but for one.
    """
    source = open_source(spec, data_dir, reading)
    chosen = split(source, split_seed, limit_train, limit_test)
    return {name: len(positions) for name, positions in chosen.items()}


def _recording(source: Source, extra: Path | None) -> Callable[[Tensor], Recorded]:
    """Raises Refused where images cannot be left in their files."""
    if source.record is None:
        raise Refused(
            f"{source.name}: --stream is only for folders and imagenet; these are arrays in memory"
        )
    if extra is not None:
        raise Refused(
            f"--extra-data {extra}: is held in memory, which --stream is there to spare; put the "
            "images into the class folders of the data set"
        )
    return source.record


def root_of(spec: str, data_dir: Path) -> Path:
    """The folder in which the files of a streamed set are; it need not be there."""
    return folder.path_of(spec) if spec.startswith(folder.PREFIX) else data_dir / spec


def open_source(spec: str, data_dir: Path, reading: Reading) -> Source:
    """A data set whose labels are known and sound, and whose images are still to be fetched.

    Raises:
        Refused, NotFound, BadData: as `load`.
    """
    if reading.image_size is not None and reading.image_size < 1:
        raise Refused(f"--image-size: must be at least 1, got {reading.image_size}")
    source = _kind(spec).open_source(spec, data_dir, reading)
    check_labels(source.labels, len(source.classes), source.name)
    return source


def _without(parts: dict[str, Split], gone: Tensor) -> dict[str, Split]:
    """The splits but for the images of these identities."""
    return {name: part.subset(~torch.isin(part.indices, gone)) for name, part in parts.items()}


def fingerprint(
    spec: str, data_dir: Path, image_size: int | None, extra: Path | None = None
) -> str:
    """A quick SHA-256 identity of the files of a data set and of the extra images.

    It changes when one of them does. Files are not decoded and, beside the shipped digits, not even
    read.

    Raises:
        Refused: an unknown name.
        NotFound: the images are not there, and would not be downloaded.
    """
    stored = _kind(spec).fingerprint(spec, data_dir)
    if image_size is not None:
        stored = hashlib.sha256(f"{stored} {image_size}".encode()).hexdigest()
    if extra is not None:
        stored = hashlib.sha256(f"{stored} extra {extra_identity(extra)}".encode()).hexdigest()
    return stored


def _kind(spec: str) -> Kind:
    if spec.startswith(folder.PREFIX):
        return folder
    for kind in _KINDS:
        if spec in kind.NAMES:
            return kind
    known = [name for name, _ in names()]
    near = difflib.get_close_matches(spec, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise Refused(f"data set {spec!r} is not known; {hint}List them with: advprune data")
