"""All that can be said of a data set before a run: what is there, what is odd, what is there twice.

It reads images as a run does, and refuses what a run refuses, but goes on after the first bad file
and keeps no pixel: memory holds some bytes for each image.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from advprune.data import folder
from advprune.data.decode import Form, check_memory, decode, probe
from advprune.data.duplicates import Duplicates, duplicates
from advprune.data.imageset import check_classes, constant_channel
from advprune.data.looking import Look, key, looks
from advprune.data.registry import fingerprint, open_source
from advprune.data.separation import sample_size, separation
from advprune.data.source import Labelled, Reading, Source
from advprune.data.sparing import Undecodable, spared
from advprune.data.splits import split
from advprune.data.tally import Tally
from advprune.errors import BadData, Refused

_CHUNK = 1024  # images of a set that is no folder


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        listed: names, classes and labels.
        paths: of each image; empty where the set is no folder.
        parts: the splits of a run, positions by name; empty where there can be none.
        tally: forms of images and faults of files, with their counts.
        form: what all images of the set have to share; None where no image can be read.
        usable: bool (N,), the images that are fit.
        twice: what occurs more than once among those.
        nearest: distance in the maximum norm of the two nearest images of different classes in a
            sample; None where there is none.
        refusals: what a run would say, in its order; it would start where there are none.
    """

    listed: Labelled
    paths: list[Path]
    parts: dict[str, Tensor]
    tally: Tally
    form: Form | None
    usable: Tensor
    twice: Duplicates
    nearest: float | None
    refusals: list[Refused]


def inspect(
    spec: str,
    data_dir: Path,
    reading: Reading,
    split_seed: int,
    watched: Callable[[Iterable[Look | BadData], int], Iterable[Look | BadData]] = lambda x, _: x,
) -> Inspection:
    """Look at every image of a data set.

    Args:
        split_seed: as a run has it, which decides what is tested with.
        watched: hands on what was seen of each image, of so many, and may show how far it came.

    Raises:
        Refused and its kinds: what a run says of it, where that leaves nothing to look at.
    """
    refusals: list[Refused] = []
    if spec.startswith(folder.PREFIX):
        listed = folder.listing(spec)
        paths, source = list(listed.paths), None
        found = looks(paths, reading)
        with _noting(refusals):
            fingerprint(spec, data_dir, reading.image_size)
    else:
        listed = source = open_source(spec, data_dir, reading)
        paths, found = [], _looks_at_arrays(source)
    seen = Tally(watched(found, len(listed.labels)), len(listed.labels))

    form = seen.commonest
    if paths:
        with _noting(refusals):
            form = probe(paths, reading)
    parts: dict[str, Tensor] = {}
    with _noting(refusals):
        parts = split(listed, split_seed, None, None)
    if form is not None:
        # Those to train on may be left in their files.
        streamed = len(parts["train"]) if paths and parts else 0
        with _noting(refusals):
            check_memory(len(listed.labels) - streamed, form)
    usable = seen.check_forms(form, paths)
    refusals += _refusals(listed, parts, seen, usable, form, spared(len(paths), reading))

    held_out = torch.zeros(len(listed.labels), dtype=torch.bool)
    if parts:
        held_out[parts["test"]] = True
    rows = usable.nonzero().flatten()
    twice = duplicates(seen.keys[rows.numpy()], listed.labels[rows].numpy(), held_out[rows].numpy())
    return Inspection(
        listed=listed,
        paths=paths,
        parts=parts,
        tally=seen,
        form=form,
        usable=usable,
        twice=_at(rows, twice),
        nearest=_nearest(listed, source, paths, parts, usable, form, reading),
        refusals=refusals,
    )


def _at(rows: Tensor, twice: Duplicates) -> Duplicates:
    """With positions in the whole set instead of those among the usable images."""
    place = rows.tolist()
    return replace(
        twice,
        pairs=tuple((place[a], place[b]) for a, b in twice.pairs),
        disputed=tuple(place[i] for i in twice.disputed),
    )


@contextmanager
def _noting(refusals: list[Refused]) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        refusals.append(error)


def _looks_at_arrays(source: Source) -> Iterator[Look | BadData]:
    for positions in torch.arange(len(source.labels)).split(_CHUNK):
        images, bad = source.fetch(positions)
        form = Form.of(images)
        for row, image in enumerate(images):
            if row in bad:
                yield Undecodable(bad[row])
                continue
            flat = image.flatten(1)
            extremes = tuple(zip(flat.amin(1).tolist(), flat.amax(1).tolist(), strict=True))
            pixels = image.permute(1, 2, 0).numpy().tobytes()
            yield Look("array", form, extremes, key(form, pixels))


def _refusals(
    listed: Labelled,
    parts: dict[str, Tensor],
    seen: Tally,
    usable: Tensor,
    form: Form | None,
    most_damaged: int,
) -> Iterator[Refused]:
    """What a run says of files, and of what is left without those that it leaves out."""
    refused = {k: f for k, f in seen.faults.items() if k != "damaged" or f.count > most_damaged}
    for fault in refused.values():
        others = f"; one of {fault.count:,} such files" if fault.count > 1 else ""
        yield BadData(fault.first[0] + others)
    if refused:
        return
    for name, positions in parts.items():
        where = f"{listed.name}: what can be read of the {name} split"
        left = listed.labels[positions[usable[positions]]]
        try:
            check_classes(left, listed.classes, where, "replace the damaged images")
        except BadData as error:
            yield error
    if parts:
        trained = parts["train"][usable[parts["train"]]].numpy()
        low, high = seen.low[trained], seen.high[trained]
        for channel in range(form.shape[0] if form and len(trained) else 0):
            if (value := low[:, channel].min()) == high[:, channel].max():
                yield constant_channel(listed.name, channel, int(value))


def _nearest(
    listed: Labelled,
    source: Source | None,
    paths: list[Path],
    parts: dict[str, Tensor],
    usable: Tensor,
    form: Form | None,
    reading: Reading,
) -> float | None:
    """The smallest distance between classes in a sample of the training images."""
    if form is None or not parts:
        return None
    train = parts["train"]
    chosen = train[usable[train]][: sample_size(math.prod(form.shape))]
    with suppress(Refused):  # no memory, or gone since
        if source is not None:
            images = source.fetch(chosen).images
        else:
            images = decode([paths[i] for i in chosen.tolist()], form, reading)
        return separation(images, listed.labels[chosen])
    return None
