"""Pages that are one file each: what they share, and the policy that lets them load nothing.

Styles and scripts sit inline, once each, and the policy names them by their digests. Names of runs,
methods and layers come from users: all text is escaped, and an address is only ever a relative path
of this machine.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploy.outcome import percent
from deploy.words import duration, flat, interval, number, radius, size

_HERE = Path(__file__).parent


def render(template: str, values: dict[str, Any], script: str | None = None) -> str:
    """A page from a template of this folder.

    Args:
        script: the file beside it that the page takes along, given to it as `script`.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digest": digest,
        "duration": duration,
        "flat": flat,
        "interval": interval,
        "number": number,
        "percent": percent,
        "radius": radius,
        "size": size,
    }
    if script is not None:
        # Ours, and not to be escaped; what users name never gets into it.
        values = {**values, "script": Markup((_HERE / script).read_text())}
    return environment.get_template(template).render(values)


def digest(text: str) -> str:
    """The source expression that lets a page's policy accept exactly this inline text."""
    hashed = base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    return f"'sha256-{hashed}'"


def printable(path: Path) -> str:
    """A path as text: names of files may hold bytes that no encoding has."""
    return os.fsencode(path).decode(errors="replace")


def address(target: Path, page: Path) -> str:
    """Where a file is, seen from a page: a relative address without a scheme, whatever its name."""
    relative = os.path.relpath(target.absolute(), page.absolute().parent)
    return quote(os.fsencode(relative))
