"""Image files as they are now: looked at once, whole, and left where they are.

The pass reads and decodes every file, with all cores: what a run would refuse it refuses before any
training, and the statistics of all pixels are exact. Later readers hold a file against its SHA-256,
and against nothing less: size and time are kept by tools that change a file, and lost by those that
copy it. The digest costs about a fiftieth of the decoding, the pass about an epoch of reading.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from advprune.data.contents import content_of
from advprune.data.decode import (
    Form,
    Undecodable,
    as_array,
    opened,
    pillow_warnings,
    ready,
    spared,
    too_many,
)
from advprune.data.source import Reading, Recorded

_CHUNK = 64


def record(root: Path, paths: Sequence[Path], form: Form, reading: Reading) -> Recorded:
    """What later proves that the files are the same.

    Args:
        root: the folder of the set.
        paths: in that folder; links that stay in it are followed.
        form: what all images have to share.

    Raises:
        BadData: as `decode.fetch`; or a file lies outside of the folder.
        NotFound, StorageFailed: as `content_of`.
    """
    real, most = root.resolve(), spared(len(paths), reading)
    names = [os.fsencode(path.relative_to(root)) for path in paths]
    digests = np.zeros((len(paths), 32), dtype=np.uint8)

    def look(start: int) -> tuple[np.ndarray, dict[int, str]]:
        counts = np.zeros((form.shape[0], 256), dtype=np.int64)
        bad: dict[int, str] = {}
        for row, name in enumerate(names[start : start + _CHUNK], start):
            content = content_of(real, name)
            digests[row] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
            try:
                with opened(paths[row], content) as image:
                    pixels = as_array(ready(image, paths[row], reading), paths[row], form)
            except Undecodable as error:
                if not most:
                    raise
                bad[row] = str(error)
                continue
            for channel, values in enumerate(pixels):
                counts[channel] += np.bincount(values.ravel(), minlength=256)
        return counts, bad

    total = np.zeros((form.shape[0], 256), dtype=np.int64)
    bad: dict[int, str] = {}
    with pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for counts, found in pool.map(look, range(0, len(paths), _CHUNK)):
            total += counts
            bad |= found
            if len(bad) > most:
                raise too_many(bad, most, len(paths))
    return Recorded(real, names, torch.from_numpy(digests), torch.from_numpy(total), reading, bad)
