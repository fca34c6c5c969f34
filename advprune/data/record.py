"""Image files as they are now: looked at once, whole, and left where they are.

The pass reads and decodes every file, with all cores: what a run would refuse it refuses before any
training, and the statistics of all pixels are exact. Later readers hold a file against its SHA-256,
and against nothing less: size and time are kept by tools that change a file, and lost by those that
copy it. The digest costs about a fiftieth of the decoding, the pass about an epoch of reading.
"""

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from advprune.data.contents import content_of
from advprune.data.decode import Form, as_array, opened, ready
from advprune.data.source import Reading, Recorded
from advprune.data.sparing import each


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
    real = root.resolve()
    names = [os.fsencode(path.relative_to(root)) for path in paths]
    digests = np.zeros((len(paths), 32), dtype=np.uint8)
    counts, counting = np.zeros((form.shape[0], 256), dtype=np.int64), threading.Lock()

    def look(row: int) -> None:
        content = content_of(real, names[row])
        digests[row] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
        with opened(path := paths[row], content) as image:
            pixels = as_array(ready(image, path, reading), path, form)
        seen = np.stack([np.bincount(values.ravel(), minlength=256) for values in pixels])
        with counting:
            np.add(counts, seen, out=counts)

    bad = each(len(paths), reading, look)
    return Recorded(real, names, torch.from_numpy(digests), torch.from_numpy(counts), reading, bad)
