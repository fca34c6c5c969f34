"""The UCI digits, shipped with the package: 1,797 handwritten digits of 8x8 pixels.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, CC BY 4.0. These are the images of its test set, as
scikit-learn distributes them: 17 levels of grey, stored as 0 to 16. A toy, not a benchmark.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from advprune.data.decode import Form, decode
from advprune.data.source import Fetched, Reading, Source

NAMES = {"digits": "1,797 handwritten digits, 8x8 grey, 10 classes; shipped, toy data"}

_FILE = Path(__file__).with_name("digits.npz")


def open_source(spec: str, data_dir: Path, reading: Reading) -> Source:
    """The digits as uint8 images (1797, 1, 8, 8): round(value * 255 / 16)."""
    reading.demand_none(spec, "8x8")
    with np.load(_FILE, allow_pickle=False) as stored:
        values, labels = stored["images"], stored["labels"]
    pixels = np.rint(values.astype(np.float64) * 255 / 16).astype(np.uint8)
    images = torch.from_numpy(pixels[:, None])
    return Source(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        train_count=None,
        augment="none",
        fetch=lambda positions: Fetched(images[positions]),
        read=partial(decode, form=Form.of(images)),
    )


def fingerprint(spec: str, data_dir: Path) -> str:
    return hashlib.sha256(_FILE.read_bytes()).hexdigest()
