"""Folders of random images, to load and to break."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advprune.data.source import Fetched, Source

COUNT = 6


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(folder: Path, shape: tuple[int, ...], suffix: str = ".png", seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(pixels(seed + i, *shape)).save(folder / f"{i}{suffix}")


def make(root: Path, shape: tuple[int, ...] = (8, 10, 3), suffix: str = ".png") -> str:
    """A set with train and test, whose classes are in the wrong order on purpose."""
    for i, name in enumerate(("zebra", "ant", "Bee")):
        fill(root / "train" / name, shape, suffix, seed=100 * i)
        fill(root / "test" / name, shape, suffix, seed=100 * i + 50)
    return f"folder:{root}"


def make_extra(root: Path) -> Path:
    """Extra images for that set: two of its three classes, the last with twice the images."""
    fill(root / "ant", (8, 10, 3), seed=1000)
    fill(root / "zebra", (8, 10, 3), seed=2000)
    fill(root / "zebra" / "deep", (8, 10, 3), ".bmp", seed=3000)
    return root


def source_of(*classes: str) -> Source:
    """A data set of which only the classes matter."""
    blank = torch.zeros(9, 1, 2, 2, dtype=torch.uint8)
    labels = torch.zeros(9, dtype=torch.int64)
    return Source("toy", classes, labels, None, "none", lambda _: Fetched(blank), lambda _: blank)
