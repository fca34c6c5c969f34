"""A split whose images stay in their files: only names, labels and digests are in memory.

What is trained on is seen as ImageNet is by everyone (torchvision's references, Szegedy et al.
2015): a part of 8 to 100 % of the area at a ratio from 3:4 to 4:3, brought to the size of the set,
and mirrored half of the time. What is measured is resized and its centre cut out, as in `decode`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advprune.data.contents import AGAIN, content_of
from advprune.data.decode import Form, as_array, check_memory, opened, plain, ready
from advprune.data.imageset import Split
from advprune.data.loading import ahead
from advprune.data.source import Reading, Recorded
from advprune.data.sparing import pillow_warnings
from advprune.errors import BadData
from advprune.repro import ImageRandom

Crop = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Files:
    """Where the files are, and how many processes decode them; neither changes what is read.

    root: the folder of the set.
    workers: 0 decodes between the steps; None takes a process for each core.
    """

    root: Path
    workers: int | None = None


@dataclass(frozen=True)
class Stream:
    """Images of a data set in the words of a `Split`, read and decoded whenever they are asked for.

    Every file is held against its digest whenever it is read, and the very bytes that were are
    decoded.

    names:   uint8, the names of all files in the folder, one after the other.
    ends:    int64 (N,), where each of them ends.
    digests: uint8 (N, 32), SHA-256 of each file.
    labels, indices: int64 (N,), as of a `Split`.
    counts:  int64 (C, 256), how often each channel has each value in all images as measured.
    form:    what the images become.
    crops:   whether training sees random parts; else the images as measured.
    device:  where images, labels and indices go.
    """

    names: Tensor
    ends: Tensor
    digests: Tensor
    labels: Tensor
    indices: Tensor
    counts: Tensor
    form: Form
    reading: Reading
    crops: bool
    files: Files
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(
        cls, found: Recorded, labels: Tensor, indices: Tensor, form: Form, crops: bool
    ) -> "Stream":
        """What was recorded, but for the rows that are bad."""
        rows = [row for row in range(len(found.names)) if row not in found.bad]
        names = [found.names[row] for row in rows]
        return cls(
            torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).copy()),
            torch.tensor([len(name) for name in names]).cumsum(0),
            found.digests[rows],
            labels[rows],
            indices[rows],
            found.counts,
            form,
            found.reading,
            crops,
            Files(found.root),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is known of the images without their files."""
        fields = ("names", "ends", "digests", "labels", "indices", "counts")
        return {name: getattr(self, name) for name in fields}

    @property
    def images(self) -> Tensor:
        """All of them as measured, uint8 (N, C, H, W). Raises Refused where they are too many."""
        check_memory(len(self), self.form)
        return self.subset(slice(None)).images

    def subset(self, rows: Tensor | slice) -> Split:
        """Some of the images as measured, in memory; as of a `Split`."""
        chosen = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        return self._split(chosen, self.pixels(chosen, None))

    def first(self, count: int) -> Split:
        """The first images as measured, stratified by class; all where there are fewer."""
        return self.subset(slice(count))

    def to(self, device: torch.device | str) -> "Stream":
        return replace(self, device=torch.device(device))

    def load(self, parts: Sequence[Tensor], seed: int | None) -> Iterator[Split]:
        """The images at the positions (int64 (n,)) of each part, decoded ahead of the caller.

        Args:
            seed: of what training sees of each image; None for the images as measured.

        Raises:
            NotFound, BadData, StorageFailed: a file is gone, changed, or cannot be read.
        """
        made = ahead(
            partial(self.pixels, seed=seed), parts, self.files.workers, self.device.type == "cuda"
        )
        for rows, pixels in zip(parts, made, strict=True):
            yield self._split(rows, pixels)

    def pixels(self, rows: Tensor, seed: int | None) -> Tensor:
        """uint8 (n, C, H, W) on the CPU; a function of each image and the seed alone."""
        found = np.empty((len(rows), *self.form.shape), dtype=np.uint8)
        crop = _crop(self.form) if self.crops and seed is not None else None
        draws = ImageRandom(seed or 0, self.indices[rows]).fork("augment").bits(1)
        with pillow_warnings(), torch.random.fork_rng(devices=()):
            for place, (row, draw) in enumerate(zip(rows.tolist(), draws.tolist(), strict=True)):
                torch.default_generator.manual_seed(*draw)
                found[place] = self._decoded(row, crop)
        return torch.from_numpy(found)

    def _decoded(self, row: int, crop: Crop | None) -> np.ndarray:
        name = self.names[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]
        root, written = self.files.root, name.numpy().tobytes()
        content, path = content_of(root, written), root / os.fsdecode(written)
        if sha256(content).digest() != self.digests[row].numpy().tobytes():
            raise BadData(f"{path}: has changed since the data stage read it; {AGAIN}")
        with opened(path, content) as image:
            if crop is None:
                return as_array(ready(image, path, self.reading), path, self.form)
            return as_array(crop(plain(image, path, self.reading.to_rgb)), path, self.form)

    def _split(self, rows: Tensor, pixels: Tensor) -> Split:
        away = {"device": self.device, "non_blocking": True}
        labels, indices = self.labels[rows], self.indices[rows]
        return Split(pixels.to(**away), labels.to(**away), indices.to(**away))


def _crop(form: Form) -> Crop:
    # torchvision takes seconds to import, and most runs do without it.
    from torchvision.transforms import v2

    width, height = form.size
    return v2.Compose([v2.RandomResizedCrop((height, width)), v2.RandomHorizontalFlip()])
