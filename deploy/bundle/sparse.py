"""Files of mostly zeros, small: where the other bytes are, and which they are, apart.

At one byte in a hundred the places cost more than the values, and LZMA finds no pattern in either;
as distances and values in two streams each comes near its entropy. Any bytes come back unchanged.
"""

import lzma

import numpy as np

_FAR = 255  # a distance of at least this many zeros goes on in the next byte
# Neither stream repeats itself, so a larger dictionary only takes memory.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**18, "lc": 0, "lp": 0, "pb": 0}]
_MEMORY = 2**27  # bytes that decompressing may take; preset 9 of xz needs 65 MiB
_HEAD = 8


def pack(content: bytes) -> bytes:
    """The bytes as two LZMA streams, with the length of the first before them."""
    array = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(array)
    gaps = np.diff(places, prepend=-1) - 1
    counts = gaps // _FAR + 1
    distances = np.full(int(counts.sum()), _FAR, np.uint8)
    distances[np.cumsum(counts) - 1] = gaps % _FAR
    first, second = (
        lzma.compress(x.tobytes(), filters=_FILTERS) for x in (distances, array[places])
    )
    return len(first).to_bytes(_HEAD, "big") + first + second


def unpack(packed: bytes, size: int) -> bytes:
    """What was packed.

    Args:
        size: of that in bytes; no more is ever allocated but for a constant.

    Raises:
        ValueError: it is not something of that size, packed.
    """
    length = int.from_bytes(packed[:_HEAD], "big")
    parts = packed[_HEAD : _HEAD + length], packed[_HEAD + length :]
    distances, values = (
        np.frombuffer(decompress(part, size + size // _FAR + 1), np.uint8) for part in parts
    )
    ends = distances < _FAR
    if len(values) != int(ends.sum()) or (len(distances) and not ends[-1]):
        raise ValueError("distances and values differ in number")
    # A distance ends where it is below 255, and a value takes the place after it.
    steps = distances.astype(np.int64) + ends
    places = np.cumsum(steps)[ends] - 1
    if len(places) and places[-1] >= size:
        raise ValueError(f"reaches beyond {size} bytes")
    content = np.zeros(size, np.uint8)
    content[places] = values
    return content.tobytes()


def decompress(content: bytes, largest: int) -> bytes:
    """One whole xz stream of at most `largest` bytes.

    Raises:
        ValueError: it is none, holds more, or something follows it.
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    try:
        found = decompressor.decompress(content, largest + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"not an xz stream ({error})") from error
    if len(found) > largest or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"not one xz stream of at most {largest} bytes")
    return found
