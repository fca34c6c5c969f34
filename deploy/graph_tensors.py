"""The values of a graph's tensors: as many as their shape says, of their type, all finite."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from deploy.graph_wire import TYPES, Hostile, Unknown, Where

MOST_AXES = 32
_SMALL = 1024  # bytes of a constant that may say how large something is
_CHUNK = 2**20  # values looked at together
# Which field of a tensor holds values of which types, where they are not raw.
_FIELDS = {
    "float_data": {TensorProto.FLOAT},
    "double_data": {TensorProto.DOUBLE},
    "int64_data": {TensorProto.INT64},
    "uint64_data": {TensorProto.UINT32, TensorProto.UINT64},
    "int32_data": {
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
        *(TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    },
}


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Hostile(otherwise)


def shown(name: str) -> str:
    """A name from the file, which may be of any length and hold any character."""
    return ascii(name if len(name) <= 60 else f"{name[:60]}...")


def values_of(tensor: TensorProto, name: str, data: bytes) -> NDArray[Any]:
    """All values of a tensor in a row, without a copy where they are most of the file.

    bfloat16 comes as uint16.
    """
    where, said = Where.of(tensor), shown(name)
    outside = tensor.data_location != TensorProto.DEFAULT or tensor.external_data
    demand(not outside, f"{said} lies in another file")
    demand(not tensor.HasField("segment"), f"{said} is a part of another tensor")
    if tensor.data_type not in TYPES:
        kinds = {number: kind for kind, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise Unknown(f"{said} holds values of type {kind}")
    kind, dims = TYPES[tensor.data_type], [*tensor.dims]
    sound = min(dims, default=0) >= 0 and len(dims) <= MOST_AXES
    demand(sound, f"{said} has {len(dims)} axes of sizes {dims[:8]}")
    count = math.prod(dims)
    kept = [key for key in (*_FIELDS, "string_data") if len(getattr(tensor, key))]
    demand(len(kept) + (where is not None) <= 1, f"{said} says its values twice")
    if where is not None:
        fields = {4: TensorProto.FLOAT, 9: tensor.data_type, 10: TensorProto.DOUBLE}
        demand(fields[where.field] == tensor.data_type, f"{said} has values of another type")
        fits = where.size == count * kind.itemsize
        demand(fits, f"{said} of shape {dims[:8]} has {where.size} bytes of {kind.name}")
        return np.frombuffer(data, kind, count, where.start) if count else np.empty(0, kind)
    if not kept:
        demand(count == 0, f"{said} of shape {dims[:8]} has no values")
        return np.empty(0, kind)
    demand(tensor.data_type in _FIELDS.get(kept[0], ()), f"{said} has values of another type")
    stored = getattr(tensor, kept[0])
    demand(len(stored) == count, f"{said} of shape {dims[:8]} has {len(stored)} values")
    if kept[0] != "int32_data" or tensor.data_type == TensorProto.INT32:
        return np.fromiter(stored, kind, count)
    # The bits of a smaller type, in the low end of 32.
    return np.fromiter(stored, "<i4", count).astype(f"<u{kind.itemsize}").view(kind)


def check_finite(values: NDArray[Any], kind: int, name: str) -> None:
    if values.dtype.kind != "f" and kind != TensorProto.BFLOAT16:
        return
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        # In 16 bits of a float32, exponents of all ones stand for what is no number.
        odd = part & 0x7F80 == 0x7F80 if kind == TensorProto.BFLOAT16 else ~np.isfinite(part)
        if odd.any():
            index = start + int(odd.argmax())
            raise Hostile(f"{shown(name)} is not finite: value {index} of {len(values)}")


def settle(tensor: TensorProto, values: NDArray[Any]) -> None:
    """Give a small tensor its values back, which may be a shape, and take those of any other."""
    for field in (*_FIELDS, "raw_data"):
        tensor.ClearField(field)
    if values.nbytes <= _SMALL:
        tensor.raw_data = values.tobytes()
