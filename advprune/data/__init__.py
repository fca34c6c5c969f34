"""Data sets as tensors in memory, or in part as files: loading, splitting, augmenting, storing."""

from advprune.data.augmentation import augment
from advprune.data.imageset import ImageSet, Loaded, Split, as_float
from advprune.data.registry import fingerprint, load, names, root_of, sizes
from advprune.data.source import Reading
from advprune.data.storage import class_names, read, save
from advprune.data.stream import Files, Stream

__all__ = [
    "Files",
    "ImageSet",
    "Loaded",
    "Reading",
    "Split",
    "Stream",
    "as_float",
    "augment",
    "class_names",
    "fingerprint",
    "load",
    "names",
    "read",
    "root_of",
    "save",
    "sizes",
]
