"""An image set as two files: `data.safetensors` with every tensor, `data.json` with the words."""

import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from advprune.data.augmentation import KINDS
from advprune.data.imageset import SPLITS, ImageSet, Split, check_labels, digest
from advprune.errors import BadData, CannotCreate, NotFound
from advprune.files import write

_TENSORS = "data.safetensors"
_WORDS = "data.json"
_FIELDS = {"images": torch.uint8, "labels": torch.int64, "indices": torch.int64}


def save(image_set: ImageSet, folder: Path) -> None:
    """Write an image set; the same set gives the same bytes.

    Raises:
        CannotCreate: the folder cannot be made.
        StorageFailed: writing failed, for instance because the disk is full.
    """
    tensors = {
        f"{name}.{field}": getattr(split, field).cpu().contiguous()
        for name, split in image_set.parts.items()
        for field in _FIELDS
    }
    words = {key: getattr(image_set, key) for key in ("name", "classes", "augment", "digest")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(f"{folder}: cannot be created ({error.strerror})") from error
    write(folder / _TENSORS, safetensors.torch.save(tensors))
    write(folder / _WORDS, (json.dumps(words, indent=2, sort_keys=True) + "\n").encode())


def read(folder: Path) -> ImageSet:
    """Read what `save` wrote.

    Raises:
        NotFound: a file is missing.
        BadData: a file is damaged, or not what its digest says.
    """
    for name in (_WORDS, _TENSORS):
        if not (folder / name).is_file():
            raise NotFound(f"{folder / name}: is missing; run the data stage again")
    words = _read_words(folder / _WORDS)
    path = folder / _TENSORS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path}: cannot be read ({error}); run the data stage again") from error
    names = (*SPLITS, "extra") if "extra.images" in tensors else SPLITS
    expected = {f"{name}.{field}" for name in names for field in _FIELDS}
    if tensors.keys() != expected:
        odd = min(tensors.keys() ^ expected)
        raise BadData(f"{path}: {odd} is missing or unknown; run the data stage again")
    parts = {
        name: Split(**{field: tensors[f"{name}.{field}"] for field in _FIELDS}) for name in names
    }
    classes = tuple(words["classes"])
    for name, split in parts.items():
        _check_split(split, parts["train"].images, len(classes), f"{path}: {name}")
    identities = torch.cat([split.indices for split in parts.values()])
    if len(identities.unique()) != len(identities):
        raise BadData(f"{path}: an image occurs more than once; run the data stage again")
    found = digest(classes, words["augment"], parts)
    if found != words["digest"]:
        raise BadData(
            f"{path}: digest is {found[:12]}, not {words['digest'][:12]} as {_WORDS} says"
        )
    return ImageSet(words["name"], classes, **parts, augment=words["augment"], digest=found)


def class_names(folder: Path) -> tuple[str, ...]:
    """The names alone of an image set that `save` wrote, in order.

    Raises:
        BadData: as `read`.
    """
    return tuple(_read_words(folder / _WORDS)["classes"])


def _read_words(path: Path) -> dict:
    try:
        words = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: cannot be read ({error}); run the data stage again") from error
    kinds = {"name": str, "classes": list, "augment": str, "digest": str}
    if not isinstance(words, dict) or words.keys() != kinds.keys():
        raise BadData(f"{path}: must hold exactly {', '.join(kinds)}; run the data stage again")
    for key, kind in kinds.items():
        if not isinstance(words[key], kind):
            raise BadData(f"{path}: {key} is {words[key]!r}, not a {kind.__name__}")
    if len(words["classes"]) < 2 or not all(isinstance(name, str) for name in words["classes"]):
        raise BadData(f"{path}: classes must be two names or more, got {words['classes']!r}")
    if words["augment"] not in KINDS:
        raise BadData(f"{path}: augment is {words['augment']!r}, not one of {', '.join(KINDS)}")
    return words


def _check_split(split: Split, like: Tensor, classes: int, where: str) -> None:
    for field, dtype in _FIELDS.items():
        tensor = getattr(split, field)
        dimensions = 4 if field == "images" else 1
        if tensor.dtype != dtype or tensor.dim() != dimensions:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise BadData(f"{where}.{field} is {found}, not {dtype} with {dimensions} dimensions")
        if len(tensor) != len(split) or not len(tensor):
            raise BadData(f"{where}.{field} has {len(tensor)} rows for {len(split)} labels")
    if split.images.shape[1:] != like.shape[1:]:
        found, wanted = tuple(split.images.shape[1:]), tuple(like.shape[1:])
        raise BadData(f"{where}.images are {found}, those of train {wanted}")
    check_labels(split.labels, classes, where)
