"""Data sets as tensors in memory: loading, splitting, augmenting, storing."""

from advprune.data.augmentation import augment
from advprune.data.imageset import ImageSet, Loaded, Split, as_float
from advprune.data.registry import fingerprint, load, names
from advprune.data.source import Reading
from advprune.data.storage import class_names, read, save

__all__ = [
    "ImageSet",
    "Loaded",
    "Reading",
    "Split",
    "as_float",
    "augment",
    "class_names",
    "fingerprint",
    "load",
    "names",
    "read",
    "save",
]
