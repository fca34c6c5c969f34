"""ONNX bytes as a message whose weights stay where they are.

A parser gives every field of a file an object, and numbers that are one byte in the file take eight
in memory: a few megabytes can ask for gigabytes. So the fields are counted before one is parsed,
and weights, which are nearly all of a sound file, are never copied: the message says where in the
file they lie.
"""

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

MOST_FIELDS = 2**18
MOST_BESIDE_WEIGHTS = 2**24  # bytes
DEEPEST = 24  # messages in messages; a graph with nothing nested has 7
# How values of a type lie in a file. Codes of 4 bits, strings and complex numbers are not here.
TYPES: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.BFLOAT16: np.dtype("<u2"),
    TensorProto.INT8: np.dtype("<i1"),
    TensorProto.UINT8: np.dtype("<u1"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.BOOL: np.dtype("<u1"),
}
_WHERE = struct.Struct("<BQQ")
# Of TensorProto: float_data, raw_data, double_data.
_WEIGHTS = (4, 9, 10)
_RAW = 9
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5


class Where(NamedTuple):
    """Where in its file the values of a tensor lie: which field they are, the first byte, bytes."""

    field: int
    start: int
    size: int

    @classmethod
    def of(cls, tensor: TensorProto) -> "Where | None":
        """Of a tensor from `lean`; None if its values are still in it."""
        return cls(*_WHERE.unpack(tensor.raw_data)) if tensor.HasField("raw_data") else None


class Malformed(Exception):
    """Bytes that no ONNX library writes."""


class Hostile(Exception):
    """Something that must not be in a graph."""


class Unknown(Exception):
    """Something that other software may know."""


class _Field(NamedTuple):
    name: str
    repeated: bool
    message: Any  # descriptor of its kind, or None
    text: bool


def lean(data: bytes) -> ModelProto:
    """The message in a file, in which `raw_data` of a tensor is a `Where`.

    Takes memory for `MOST_FIELDS` fields and a few times `MOST_BESIDE_WEIGHTS`, whatever is in the
    file.

    Raises:
        Malformed: it cannot be parsed, says one thing twice, or is nested or large without weights.
    """
    content = _Reader(data).message(0, len(data), ModelProto.DESCRIPTOR, 0)
    try:
        return ModelProto.FromString(bytes(content))
    except DecodeError as error:
        raise Malformed(str(error)) from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = 0
        self._kept = 0

    def message(self, at: int, end: int, kind: Any, depth: int) -> bytearray:
        """The same message without weights, from bytes `at` to `end` of the file."""
        if depth > DEEPEST:
            raise Malformed(f"messages nested more than {DEEPEST} deep")
        fields, content, seen = _fields_of(kind), bytearray(), set[int]()
        while at < end:
            start = at
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            size = {_EIGHT: 8, _FOUR: 4}.get(wire, 0)
            if wire == _SIZED:
                size, at = self._varint(at, end)
            elif wire == _VARINT:
                _, at = self._varint(at, end)
            if wire not in (_VARINT, _EIGHT, _SIZED, _FOUR) or at + size > end:
                raise Malformed(f"{kind.name} is cut short or damaged at byte {start}")
            if number not in fields:
                raise Malformed(f"{kind.name} has field {number}, which is not ONNX")
            field, body, at = fields[number], at, at + size
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise Malformed(f"more than {MOST_FIELDS} fields")
            weights = kind.name == "TensorProto" and number in _WEIGHTS and wire == _SIZED
            once = _RAW if weights else number
            if once in seen and (weights or not field.repeated):
                raise Malformed(f"{kind.name} says {field.name} twice")
            seen.add(once)
            if weights:
                content += _sized(_RAW, _WHERE.pack(number, body, size))
                continue
            if field.message is not None and wire == _SIZED:
                content += _sized(number, self.message(body, at, field.message, depth + 1))
                continue
            if field.text and wire == _SIZED and not _is_text(self._data[body:at]):
                raise Malformed(f"{kind.name} has a {field.name} that is no UTF-8")
            self._kept += at - start
            if self._kept > MOST_BESIDE_WEIGHTS:
                raise Malformed(f"more than {MOST_BESIDE_WEIGHTS} bytes beside its weights")
            content += self._data[start:at]
        return content

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise Malformed(f"it is cut short or damaged at byte {at}")


@cache
def _fields_of(kind: Any) -> Mapping[int, _Field]:
    return {
        number: _Field(
            field.name, field.is_repeated, field.message_type, field.type == field.TYPE_STRING
        )
        for number, field in kind.fields_by_number.items()
    }


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _sized(number: int, content: bytes | bytearray) -> bytes:
    head = bytearray()
    for value in (number << 3 | _SIZED, len(content)):
        while value >= 0x80:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head + content)
