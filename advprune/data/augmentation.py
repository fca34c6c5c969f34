"""Random crops and flips, on the device, each image by its own random stream.

The usual augmentation of CIFAR (He et al. 2016, section 4.2): pad with zeros, crop at random, and
mirror half of the images. What is streamed from files has been cropped and mirrored by whoever read
it, see `stream.py`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from advprune.errors import Refused
from advprune.repro import ImageRandom
from advprune.types import Images

READ = "resized-crop-flip"  # done by whoever reads the file
KINDS = ("none", "crop", "crop-flip", READ)


def augment(images: Images, rng: ImageRandom, kind: str) -> Images:
    """Shift each image by up to an eighth of its height (4 pixels of 32), and perhaps mirror it.

    Args:
        images: (N, C, H, W).
        rng: the streams of exactly these images.
        kind: one of `KINDS`.

    Raises:
        Refused: the kind is not known.
    """
    if kind not in KINDS:
        raise Refused(f"augment: {kind!r} is not known; use one of {', '.join(KINDS)}")
    if kind in ("none", READ):
        return images
    count, channels, height, width = images.shape
    margin = height // 8
    offsets = rng.integers(2 * margin + 1, 2)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    if kind == "crop-flip":
        columns = torch.where(rng.integers(2, 1).bool(), columns.flip(1), columns)
    padded = functional.pad(images, (margin,) * 4)
    source: Tensor = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    chosen = source.reshape(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, chosen).reshape(images.shape)
