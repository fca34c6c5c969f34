"""An image set as two files: `data.safetensors` with every tensor, `data.json` with the words.

Images that are streamed stay in their own files: of those there are names and digests.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from advprune.data.augmentation import KINDS, READ
from advprune.data.decode import Form
from advprune.data.imageset import SPLITS, ImageSet, Split, check_labels, digest
from advprune.data.source import Reading
from advprune.data.stream import Files, Stream
from advprune.errors import BadData, CannotCreate, NotFound, Refused
from advprune.files import write

_TENSORS = "data.safetensors"
_WORDS = "data.json"
_FIELDS = {"images": torch.uint8, "labels": torch.int64, "indices": torch.int64}
_STREAMED = {  # of training images that are: their type and dimensions
    "names": (torch.uint8, 1),
    "ends": (torch.int64, 1),
    "digests": (torch.uint8, 2),
    "labels": (torch.int64, 1),
    "indices": (torch.int64, 1),
    "counts": (torch.int64, 2),
}
_READING = {"image_size": int | None, "to_rgb": bool, "skip_bad": bool}


def save(image_set: ImageSet, folder: Path) -> None:
    """Write an image set; the same set gives the same bytes.

    Raises:
        CannotCreate: the folder cannot be made.
        StorageFailed: writing failed, for instance because the disk is full.
    """
    tensors = {
        f"{name}.{field}": tensor.cpu().contiguous()
        for name, split in image_set.parts.items()
        for field, tensor in split.tensors.items()
    }
    words = {key: getattr(image_set, key) for key in ("name", "classes", "augment", "digest")}
    if isinstance(image_set.train, Stream):
        words["reading"] = asdict(image_set.train.reading)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(f"{folder}: cannot be created ({error.strerror})") from error
    write(folder / _TENSORS, safetensors.torch.save(tensors))
    write(folder / _WORDS, (json.dumps(words, indent=2, sort_keys=True) + "\n").encode())


def read(folder: Path, files: Files | None = None) -> ImageSet:
    """Read what `save` wrote.

    Args:
        files: of a set whose training images are streamed; they are not looked for.

    Raises:
        Refused: nobody said where the files of such a set are.
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
    streamed = "reading" in words
    expected = {
        f"{name}.{field}"
        for name in names
        for field in (_STREAMED if streamed and name == "train" else _FIELDS)
    }
    if tensors.keys() != expected:
        odd = min(tensors.keys() ^ expected)
        raise BadData(f"{path}: {odd} is missing or unknown; run the data stage again")
    parts: dict[str, Split | Stream] = {}
    classes = tuple(words["classes"])
    for name in reversed(names):  # the form of all is that of the validation images
        where = f"{path}: {name}"
        if streamed and name == "train":
            parts[name] = _stream(tensors, words, Form.of(parts["val"].images), files, where)
        else:
            split = Split(**{field: tensors[f"{name}.{field}"] for field in _FIELDS})
            _check_split(split, tensors["val.images"], where)
            parts[name] = split
        check_labels(parts[name].labels, len(classes), where)
    identities = torch.cat([split.indices for split in parts.values()])
    if len(identities.unique()) != len(identities):
        raise BadData(f"{path}: an image occurs more than once; run the data stage again")
    found = digest(classes, words["augment"], parts)
    if found != words["digest"]:
        raise BadData(
            f"{path}: digest is {found[:12]}, not {words['digest'][:12]} as {_WORDS} says"
        )
    about = {"augment": words["augment"], "digest": found}
    return ImageSet(words["name"], classes, **parts, **about)  # pyright: ignore[reportArgumentType]


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
    if isinstance(words, dict) and "reading" in words:
        kinds["reading"] = dict
    if not isinstance(words, dict) or words.keys() != kinds.keys():
        raise BadData(f"{path}: must hold exactly {', '.join(kinds)}; run the data stage again")
    for key, kind in kinds.items():
        if not isinstance(words[key], kind):
            raise BadData(f"{path}: {key} is {words[key]!r}, not a {kind.__name__}")
    if len(words["classes"]) < 2 or not all(isinstance(name, str) for name in words["classes"]):
        raise BadData(f"{path}: classes must be two names or more, got {words['classes']!r}")
    if words["augment"] not in KINDS:
        raise BadData(f"{path}: augment is {words['augment']!r}, not one of {', '.join(KINDS)}")
    reading = words.get("reading")
    if reading is not None and (
        reading.keys() != _READING.keys()
        or not all(isinstance(reading[key], kind) for key, kind in _READING.items())
    ):
        raise BadData(f"{path}: reading is {reading!r}; run the data stage again")
    return words


def _stream(
    tensors: dict[str, Tensor], words: dict, form: Form, files: Files | None, where: str
) -> Stream:
    if files is None:
        raise Refused(f"{where} is streamed from files, and nobody said where they are")
    found: dict[str, Any] = {field: tensors[f"train.{field}"] for field in _STREAMED}
    for field, (dtype, dimensions) in _STREAMED.items():
        if found[field].dtype != dtype or found[field].dim() != dimensions:
            raise BadData(f"{where}.{field} is not {dtype} with {dimensions} dimensions")
    count = len(found["labels"])
    ends = found["ends"]
    rows = [len(found[field]) for field in ("ends", "digests", "indices")]
    if not count or rows != [count] * 3 or found["digests"].shape[1] != 32:
        raise BadData(f"{where} has {count} labels, and not as many names and digests")
    if int(ends[0]) < 1 or bool((ends.diff() < 1).any()) or int(ends[-1]) != len(found["names"]):
        raise BadData(f"{where}.ends does not cut the names into {count}")
    if found["counts"].shape != (form.shape[0], 256) or bool((found["counts"] < 0).any()):
        raise BadData(f"{where}.counts are not how often {form.shape[0]} channels have 256 values")
    crops, reading = words["augment"] == READ, Reading(**words["reading"])
    return Stream(**found, form=form, reading=reading, crops=crops, files=files)


def _check_split(split: Split, like: Tensor, where: str) -> None:
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
        raise BadData(f"{where}.images are {found}, those of val {wanted}")
