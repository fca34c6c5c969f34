"""Holding JSON from elsewhere against the shape that it must have. Standard library only."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Is(NamedTuple):
    """A test of one value and, in words, what passes it."""

    what: str
    test: Callable[[Any], bool]


class OrNull(NamedTuple):
    """A shape, or nothing."""

    shape: "Shape"


Shape = Is | OrNull | Mapping[str, Any]


def check(value: Any, shape: Shape, where: str = "") -> None:
    """Hold a value against a test, or a table against a table of shapes.

    Args:
        where: the path of the value in the file; "" is the file itself.

    Raises:
        ValueError: a value does not pass, or a table has other keys.
    """
    if isinstance(shape, OrNull):
        if value is not None:
            check(value, shape.shape, where)
    elif isinstance(shape, Is):
        if not shape.test(value):
            raise ValueError(f"{where} must be {shape.what}, got {repr(value)[:40]}")
    elif not isinstance(value, dict) or set(value) != set(shape):
        raise ValueError(f"{where or 'the file'} must hold exactly {', '.join(shape)}")
    else:
        for key, inner in shape.items():
            check(value[key], inner, f"{where}.{key}" if where else key)


def is_text(value: Any) -> bool:
    # Printable, so one line: names end up on terminals, in XML and in Markdown.
    return isinstance(value, str) and value != "" and value.isprintable()


def is_number(value: Any) -> bool:
    # Booleans are integers to Python; `type` keeps them out.
    return type(value) in (int, float) and abs(value) < 1e308


TEXT = Is("one line of text", is_text)
INTEGER = Is("an integer", lambda x: type(x) is int)
# Larger ones are no count of anything, and no float can hold them all.
COUNT = Is("a positive integer below 2**63", lambda x: type(x) is int and 0 < x < 2**63)
NUMBER = Is("a finite number", is_number)
TABLE = Is("a table", lambda x: isinstance(x, dict))
DIGEST = Is(
    "a SHA-256 digest in lower-case hexadecimal",
    lambda x: isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None,
)
