"""`advprune init`: check the data and the model, then write a project around them."""

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from advprune.data import ImageSet, Split
from advprune.data.folder import PREFIX
from advprune.errors import CannotCreate, Refused, printable
from advprune.files import write
from pipeline.beginning import begin
from pipeline.commands.data_check import watched
from pipeline.data_check import Check, as_data, check
from pipeline.project import BASELINE, CI, IGNORED, RECIPE, files, ignoring, names, seen_from
from pipeline.resolve import resolve
from pipeline.wording import unknown


def init(
    folder: Path,
    data: str,
    reading: Mapping[str, Any],
    choices: Mapping[str, Any],
    ci: CI,
    as_json: bool,
) -> int:
    """Write a project.

    Args:
        reading: how images are to be read, see `data_check.check`.
        choices: model, method and sparsity, where they were given.

    Raises:
        Refused and its kinds: nothing was written; also where the data or the model would be
            refused by a run.
        CannotCreate: a file is there already.
    """
    if ci not in get_args(CI):
        raise Refused(unknown("--ci", ci, list(get_args(CI))))
    named = _places(folder, data, reading)
    resolve({**choices, **named}, environment={})
    demand_free(folder, names(ci))

    checked = check(data, reading, watched)
    if checked.refusals:
        raise checked.refusals[0]
    settings = {**checked.advice.settings, **choices, **named}
    recipe, _ = resolve(settings, environment={})
    begin(recipe, stand_in(checked))
    made = files(recipe, settings, ci)
    ignored = folder / IGNORED
    old = ignored.read_bytes() if ignored.is_file() else b""
    create(folder, made)
    if (new := ignoring(old)) != old:
        write(ignored, new)
    _tell(folder, [*made, *([IGNORED] if new != old else [])], checked, as_json)
    return 0


def _places(folder: Path, data: str, reading: Mapping[str, Any]) -> dict[str, str]:
    """Where the images are, as the recipe says it."""
    spec = as_data(data)
    if spec.startswith(PREFIX) and spec != PREFIX:
        spec = PREFIX + seen_from(folder, Path(spec.removeprefix(PREFIX)))
    places = {"data": spec}
    if "data_dir" in reading:
        places["data_dir"] = seen_from(folder, Path(reading["data_dir"]))
    return places


def stand_in(checked: Check) -> ImageSet:
    """Two images in the form of the real ones, of which a network is built as for those."""
    form = checked.found.form
    assert form is not None  # or the check would have refused the data
    pixels = torch.zeros(2, *form.shape, dtype=torch.uint8)
    pixels[1] = 255
    both = Split(pixels, torch.arange(2), torch.arange(2))
    listed = checked.found.listed
    return ImageSet(listed.name, listed.classes, both, both, both, both, "none", "")


def demand_free(folder: Path, made: list[str]) -> None:
    """Raises CannotCreate naming what is in the way."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise CannotCreate(f"{path}: is a file; choose another folder")
    for name in made:
        path = folder / name
        if path.exists() or path.is_symlink():
            raise CannotCreate(
                f"{path}: is there already, and nothing is overwritten; move it away, or choose "
                "another folder"
            )


def create(folder: Path, made: Mapping[str, bytes]) -> None:
    """Write all of the files, or leave none of them.

    Raises:
        CannotCreate, StorageFailed: the folder cannot be written to, or the disk is full.
    """
    written: list[Path] = []
    try:
        for name, content in made.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content)
            written.append(path)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        for path in {folder / name for name in made}:
            with suppress(OSError, ValueError):  # not empty, or never made
                path.parent.rmdir()
        if isinstance(error, OSError):
            raise CannotCreate(f"{folder}: cannot be written to ({error.strerror})") from error
        raise


def _tell(folder: Path, written: list[str], checked: Check, as_json: bool) -> None:
    commands = [
        f"advprune plan --recipe {RECIPE}",
        f"advprune run --recipe {RECIPE}",
        f"advprune gate runs/latest --baseline {BASELINE} --update-baseline --reason first",
    ]
    if folder.resolve() != Path.cwd():
        commands[0] = f"cd {shlex.quote(str(folder))} && {commands[0]}"
    warnings = list(checked.warnings())
    if as_json:
        document = {"folder": str(folder), "files": written, "warnings": warnings, "next": commands}
        sys.stdout.write(json.dumps(document) + "\n")
        return
    console = Console()
    lines = [f" ✓ {folder / name}" for name in written]
    lines += [f" ! {warning}" for warning in warnings]
    for line in [*lines, *(f"→ {command}" for command in commands)]:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
