"""What is said of a setting that is not known, or of a value that does not fit it."""

import difflib

from pydantic import ValidationError


def unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return f"{what} {name!r} is not known; {hint}"


def first_error(error: ValidationError, sources: dict[str, str], prefix: str = "") -> str:
    """The first finding of pydantic in one line: option, value, what is wrong."""
    first = error.errors()[0]
    key = prefix + ".".join(str(part) for part in first["loc"])
    source = f" (from {sources[key]})" if key in sources else ""
    message = first["msg"].removeprefix("Value error, ")
    option = key if "." in key else "--" + key.replace("_", "-")
    return f"{option} {first['input']!r}{source}: {message[0].lower()}{message[1:]}"
