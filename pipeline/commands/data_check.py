"""`advprune data check`: what a run will find in a data set, as text or as one document."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import track

from advprune.errors import printable
from export.calibrate import FEWEST_IMAGES
from pipeline.advice import Advice
from pipeline.data_check import Check, check

_CLASSES = 10  # that are shown one by one
_KINDS = {
    "damaged": "cannot be decoded",
    "unfit": "are no 8-bit grey or colour",
    "odd": "differ from the first",
}


def data_check(text: str, given: Mapping[str, Any], as_json: bool) -> int:
    done = check(text, given, watched)
    if as_json:
        sys.stdout.write(json.dumps(document(done)) + "\n")
        return done.exit_code
    show(done, Console())
    if done.refusals:
        raise done.refusals[0]
    return 0


def watched(found: Iterable[Any], count: int) -> Iterable[Any]:
    """A bar on the error stream while images are read, where that is a terminal."""
    console = Console(stderr=True)
    return track(
        found,
        " reading images",
        count,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def document(done: Check) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it."""
    found, form = done.found, done.found.form
    images, free = done.memory
    return {
        "data": done.data,
        "layout": layout(done),
        "classes": {k: {"train": a, "test": b} for k, (a, b) in done.counts.items()},
        "splits": {name: len(part) for name, part in found.parts.items()},
        "form": form and {"mode": form.mode, "width": form.size[0], "height": form.size[1]},
        "stored": dict(found.tally.stored),
        "sizes": {f"{w}x{h}": n for (w, h), n in done.sizes.most_common(100)},
        "faults": {kind: asdict(fault) for kind, fault in found.tally.faults.items()},
        "duplicates": {**asdict(found.twice), "pairs": done.leaks},
        "separation": found.nearest,
        "gate": done.outlook and asdict(done.outlook),
        "memory": {"images": images, "free": free},
        "warnings": list(done.warnings()),
        "settings": done.advice.settings,
        "reasons": done.advice.reasons,
        "error": str(done.refusals[0]) if done.refusals else None,
        "refusals": [str(refusal) for refusal in done.refusals],
        "exit_code": done.exit_code,
        "next": done.next,
    }


def show(done: Check, console: Console) -> None:
    for line in lines(done):
        style = {"!": "yellow", "✗": "red", "→": "bold"}.get(line.lstrip()[:1], "")
        # A path that is broken over two lines cannot be copied.
        console.print(printable(line), style=style, highlight=False, markup=False, soft_wrap=True)


def layout(done: Check) -> str:
    if not done.found.paths:
        return "a set of its own"
    halves = done.found.listed.train_count is not None
    return "train/ and test/" if halves else "one folder, of which a fifth becomes the test set"


def lines(done: Check) -> Iterator[str]:
    """The whole text, line by line; those of findings begin with a sign."""
    found, form = done.found, done.found.form
    count = len(found.listed.labels)
    yield f"{done.data}: {count:,} images in {len(done.counts):,} classes; {layout(done)}"
    yield from _classes(done.counts)
    if form is not None:
        channels = "grey" if form.mode == "L" else "colour"
        stored = ", ".join(f"{n:,} {kind}" for kind, n in found.tally.stored.most_common(5))
        yield f" images   {form.size[0]}x{form.size[1]} {channels} as they are read; {stored}"
    if len(done.sizes) > 1:
        widths, heights = zip(*done.sizes, strict=True)
        smallest = f"{min(widths)}x{min(heights)}"
        yield f" sizes    {len(done.sizes):,}, {smallest} to {max(widths)}x{max(heights)}"
    if found.parts:
        parts = ", ".join(f"{name} {len(part):,}" for name, part in found.parts.items())
        yield f" splits   {parts} ({FEWEST_IMAGES} calib are the least)"
    images, free = done.memory
    yield (
        f" memory   {images / 1e6:,.1f} MB for all images, three times that while they are stored, "
        f"and about 1 GB for the rest; {free / 1e9:,.1f} GB are free"
    )
    if found.nearest is not None:
        yield (
            f" distance {found.nearest * 255:.0f}/255 between the nearest images of different "
            "classes in a sample; eps must stay below half of it"
        )
    for line in done.outlook.lines if done.outlook else ():
        yield f" {line.replace('gate:', 'gate    ', 1)}"
    for kind, fault in found.tally.faults.items():
        yield f"{'!' if done.skips(kind) else '✗'} {fault.count:,} files {_KINDS[kind]}"
        yield from (f"     {line}" for line in fault.first)
        if fault.count > len(fault.first):
            yield f"     and {fault.count - len(fault.first):,} more"
    yield from (f"! {warning}" for warning in done.warnings())
    told = tuple(line for fault in found.tally.faults.values() for line in fault.first)
    yield from (f"✗ {text}" for text in map(str, done.refusals) if not text.startswith(told or "-"))
    yield from _settings(done.advice)
    yield f"→ {done.next}"


def _settings(advice: Advice) -> Iterator[str]:
    """What suits the images, and why; what is the same in all stages once."""
    if advice.reasons:
        yield " settings that suit them"
    shown: set[str] = set()
    for key, reason in advice.reasons.items():
        stage, _, leaf = key.rpartition(".")
        if leaf not in shown:
            name = f"{leaf} of every stage" if stage else leaf
            yield f"   {f'{name} = {advice.settings[key]}':<30} {reason}"
        shown.add(leaf)


def _classes(counts: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Each class, or of many the smallest and the largest."""
    ordered = sorted(counts, key=lambda name: counts[name], reverse=True)
    shown = ordered if len(ordered) <= _CLASSES else [*ordered[:3], *ordered[-3:]]
    yield f" classes  {'':<24} {'train':>9} {'test':>9}"
    for position, name in enumerate(shown):
        if position == 3 and len(ordered) > len(shown):
            yield f"          and {len(ordered) - len(shown):,} between"
        train, test = counts[name]
        yield f"          {name[:24]:<24} {train:>9,} {test:>9,}"
