"""Masks come back from their file as they were, bit by bit; what holds anything else is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from advprune.errors import BadData
from advprune.masks import counts, load_masks, save_masks, sparsity_of

FEW_AND_MANY = pytest.mark.parametrize(
    "examples", [50, pytest.param(5000, marks=pytest.mark.slow, id="many")]
)
NAMES = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda n: n != "__metadata__")
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[np.bool_]:
    shape = draw(SHAPES)
    size = math.prod(shape)
    bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.array(bits, dtype=bool).reshape(shape)


def written(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A safetensors file, byte by byte: name -> type, shape, content."""
    header, content = {}, b""
    for name, (kind, shape, raw) in tensors.items():
        offsets = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


@FEW_AND_MANY
def test_masks_come_back_with_exact_counts(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "masks.safetensors"

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.dictionaries(NAMES, arrays(), min_size=1, max_size=4))
    def holds(masks: dict[str, NDArray[np.bool_]]) -> None:
        save_masks({name: torch.from_numpy(mask) for name, mask in masks.items()}, path)
        found = load_masks(path)
        assert found.keys() == masks.keys()
        assert all(np.array_equal(found[name].numpy(), mask) for name, mask in masks.items())
        assert counts(found) == {n: (int(m.sum()), m.size) for n, m in masks.items()}
        kept, total = (sum(column) for column in zip(*counts(found).values(), strict=True))
        assert sparsity_of(found) == pytest.approx(1 - kept / total)

    holds()


@FEW_AND_MANY
def test_a_file_is_masks_or_refused(tmp_path: Path, examples: int) -> None:
    """Bytes that are neither true nor false count as more than one weight, or as none."""
    path = tmp_path / "masks.safetensors"
    kinds = st.sampled_from(["BOOL", "BOOL", "BOOL", "U8", "F32", "I64"])
    raws = st.lists(st.sampled_from([0, 1, 1, 1, 2, 255]), max_size=8).map(bytes)
    tensors = st.tuples(kinds, st.lists(st.integers(0, 8), max_size=2), raws)

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.dictionaries(NAMES, tensors, max_size=3))
    @example({})
    @example({"a": ("BOOL", [3], b"\x01\x00\x02")})
    @example({"a": ("BOOL", [0], b"")})
    @example({"a": ("BOOL", [2], b"\x01\x00")})
    def holds(content: dict[str, tuple[str, list[int], bytes]]) -> None:
        written(path, content)
        sound = bool(content) and all(
            kind == "BOOL" and raw and len(raw) == math.prod(shape) and set(raw) <= {0, 1}
            for kind, shape, raw in content.values()
        )
        assert bool(accepted(path)) == sound

    holds()


def accepted(path: Path) -> dict[str, Any] | None:
    try:
        return dict(load_masks(path))
    except BadData as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
        return None
