"""Data sets as tensors in memory: loading, splitting, augmenting, storing."""

from advprune.data.augmentation import augment
from advprune.data.imageset import ImageSet, Loaded, Split, as_float
from advprune.data.registry import fingerprint, load, names
from advprune.data.source import Reading
from advprune.data.storage import read, save

__all__ = [
    "ImageSet",
    "Loaded",
    "Reading",
    "Split",
    "as_float",
    "augment",
    "fingerprint",
    "load",
    "names",
    "read",
    "save",
]
