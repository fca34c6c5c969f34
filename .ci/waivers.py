"""Advisories that somebody answers for, each until a day, as `waivers.toml` shows."""

import datetime
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class WaiverError(ValueError):
    """What is off in the file, and the way out."""


@dataclass(frozen=True)
class Waiver:
    """One advisory that does not count for one package.

    Attributes:
        id: the advisory's, or one of its aliases.
        package: normalised, as locks spell it.
        expires: the last day, in UTC, on which it holds.
    """

    id: str
    package: str
    reason: str
    person: str
    expires: datetime.date


def read_waivers(path: Path) -> list[Waiver]:
    """Every waiver.

    Raises:
        WaiverError: the file is missing or no TOML, or a waiver is not whole, or there twice.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WaiverError(f"{path}: {error}; an empty file waives nothing") from error
    entries = content.pop("waiver", [])
    if content or not isinstance(entries, list):
        raise WaiverError(f"{path}: holds more than [[waiver]] tables; take the rest out")
    waivers = [_waiver(entry, f"{path}: waiver {n}") for n, entry in enumerate(entries, 1)]
    if len({(waiver.id, waiver.package) for waiver in waivers}) < len(waivers):
        raise WaiverError(f"{path}: two waivers of one advisory; keep the right one")
    return waivers


def _waiver(entry: Any, where: str) -> Waiver:
    wanted = {field.name: field.type for field in fields(Waiver)}
    if not isinstance(entry, dict) or entry.keys() != wanted.keys():
        raise WaiverError(f"{where}: holds {entry!r}; give {', '.join(wanted)} and no more")
    for name, kind in wanted.items():
        value = entry[name]
        # A time of day is a date, too, for isinstance.
        if type(value) is not kind or (kind is str and not value.strip()):
            raise WaiverError(f"{where}: {name} is {value!r}; give a {kind.__name__}")  # pyright: ignore
    return Waiver(**entry)
