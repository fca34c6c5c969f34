"""The locks in `requirements/` as data: what is pinned, by which digests, and what asked for it.

uv writes them; whatever it would not write is refused, so that nothing is overlooked. Standard
library only.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
# Says what a lock may not fall below; pins nothing.
OVERRIDES = "overrides.txt"

_PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([A-Za-z0-9.+!]+)(?: ; ([^\\#]+))? \\")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})( \\)?")
_VIA = re.compile(r"    # (?:via(?: (\S.*))?|  (\S.*))")


class LockError(ValueError):
    """What is off in a lock: its file, its line, and the way out."""


@dataclass(frozen=True)
class Pin:
    """One release of a package.

    Attributes:
        name: normalised, as package indexes spell it.
        marker: where it is installed, as PEP 508 says it; empty for everywhere.
        hashes: SHA-256 of every file of the release, in hexadecimal.
        parents: names of the packages, files and options that asked for it.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    parents: tuple[str, ...]


def locks(folder: Path = REQUIREMENTS) -> list[Path]:
    """Every lock of a folder, by name.

    Raises:
        LockError: there is none.
    """
    found = sorted(path for path in folder.glob("*.txt") if path.name != OVERRIDES)
    if not found:
        raise LockError(f"{folder}: holds no lock; write them with `make lock`")
    return found


def read_lock(path: Path) -> list[Pin]:
    """Every pin of a lock, in its order.

    Raises:
        LockError: a line is none of uv's, or a pin has no digest.
    """
    pins: list[Pin] = []
    more = False  # whether the line before goes on
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        where = f"{path}:{number}: {line.strip()!r}"
        if not more and (match := _PIN.fullmatch(line)):
            pins.append(Pin(match[1], match[2], (match[3] or "").strip(), (), ()))
            more = True
        elif more and (match := _HASH.fullmatch(line)):
            pins[-1] = replace(pins[-1], hashes=(*pins[-1].hashes, match[1]))
            more = match[2] is not None
        elif not more and pins and (match := _VIA.fullmatch(line)):
            if parent := match[1] or match[2]:
                pins[-1] = replace(pins[-1], parents=(*pins[-1].parents, parent))
        else:
            raise LockError(f"{where} is no pin with a SHA-256; write the file with `make lock`")
    if more or not pins:
        raise LockError(f"{path}: ends before its last digest; write the file with `make lock`")
    return pins
