"""Flags as text, a bit each: how verdict files stay small enough for git. Standard library only."""

import base64
from collections.abc import Sequence


def pack(flags: Sequence[bool]) -> str:
    """Base64 of the flags, most significant bit first, padded with zeros to whole bytes."""
    size = (len(flags) + 7) // 8
    bits = "".join("1" if flag else "0" for flag in flags).ljust(8 * size, "0")
    return base64.b64encode(int(bits or "0", 2).to_bytes(size, "big")).decode()


def unpack(packed: str, count: int) -> list[bool]:
    """The `count` flags that `pack` wrote.

    Raises:
        ValueError: not canonical base64, another length, or padding bits that are not zero.
    """
    raw = base64.b64decode(packed, validate=True)
    if len(raw) != (count + 7) // 8:
        raise ValueError(f"holds {len(raw)} bytes, {count} flags take {(count + 7) // 8}")
    bits = format(int.from_bytes(raw, "big"), "b").zfill(8 * len(raw))
    flags = [bit == "1" for bit in bits[:count]]
    if pack(flags) != packed:
        raise ValueError("padding bits are not zero")
    return flags
