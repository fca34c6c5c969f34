"""A sealed file is read as it was written, or not at all."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.sealed import is_sealed, seal, unseal
from export import build_engine

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.text(), VALUES | st.text(), min_size=1, max_size=4)
EXAMPLE = {"eps": 1e-05, "name": "ö", "deep": {"none": None, "many": [1, 2, []]}}


@settings(deadline=None, derandomize=True)
@given(TABLES)
def test_a_table_comes_back_and_a_device_writes_the_same_bytes(table: dict[str, Any]) -> None:
    data = seal(table)
    assert (unseal(data), is_sealed(data)) == (table, True)
    assert build_engine.seal(table) == data


def test_the_digest_is_that_of_the_lines_above() -> None:
    data = seal(EXAMPLE)
    *above, last, end, nothing = data.decode().split("\n")
    text = "\n".join(above).removesuffix(",")
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert (last, end, nothing) == (f' "sha256_of_the_above": "{digest}"', "}", "")
    assert json.loads(data) == {**EXAMPLE, "sha256_of_the_above": digest}


def test_every_flipped_bit_every_cut_and_every_byte_more_is_noticed() -> None:
    data = seal(EXAMPLE)
    changed = [data[:size] for size in range(len(data))]
    changed += [data + bytes([byte]) for byte in b"\n \0}"]
    changed += [data.replace(b"\n", b"\r\n"), b" " + data, json.dumps(EXAMPLE).encode(), b"{}"]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(flipped))
    for other in changed:
        with pytest.raises(ValueError, match="digest"):
            unseal(other)


@pytest.mark.parametrize("table", [{}, {"eps": float("nan")}, {"eps": float("inf")}])
def test_what_could_not_be_read_again_is_not_sealed(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nothing|JSON"):
        seal(table)


def test_a_key_that_comes_twice_is_refused_even_under_a_true_digest() -> None:
    above = b'{\n "a": 1,\n "a": 2'
    digest = hashlib.sha256(above).hexdigest().encode()
    with pytest.raises(ValueError, match="twice"):
        unseal(above + b',\n "sha256_of_the_above": "' + digest + b'"\n}\n')
