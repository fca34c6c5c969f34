"""JSON from elsewhere, in which two readers can see only one thing. Standard library only."""

import json
from typing import Any

DEEPEST = 32


def loads(content: str | bytes) -> Any:
    """What a JSON document says.

    `json.loads` takes the last of two equal keys, and as many brackets as the stack of whoever
    called it has room for: more than the next function may have, which walks what was read.

    Raises:
        ValueError: it is not JSON, a key comes twice in an object, or it is nested deeper than
            `DEEPEST`.
    """
    try:
        document = json.loads(content, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    _demand_shallow(document)
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key comes twice")
    return content


def _demand_shallow(document: Any) -> None:
    level = [document]
    for _ in range(DEEPEST + 1):
        containers = [value for value in level if isinstance(value, dict | list)]
        if not containers:
            return
        level = [
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
    raise ValueError(f"nested deeper than {DEEPEST}")
