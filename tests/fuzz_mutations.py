"""Ways to damage a file, with and without knowing its format; the same seed gives the same damage.

Damage that ignores a format mostly breaks its frame. What comes behind, where sizes, names and
numbers are believed, is reached by taking the format apart, damaging a part, and closing it again.
"""

import contextlib
import hashlib
import io
import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from random import Random
from typing import Any

from fuzzing import Mutation
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

_SIZES = [0, 1, 2, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
_SIZES += [2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_DEEP = "@deep@"
_STRANGE = [None, True, False, 0, -1, 1, 2, 10**400, -(2**63), 1e308, 5e-324, -0.0]
_STRANGE += [float("nan"), float("inf"), "", "x" * 5000, "a\nb\x1b[31m\0", "../../x", "/etc/passwd"]
_STRANGE += ["\ud800", "1", [], {}, [[]], {"": 0}, [0] * 1000, _DEEP]


def of_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Flips, gaps, repeats, cuts, splices with another sample, and numbers at their ends."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data = rng.choice(_BYTES)(rng, data, others)
    return data


def _flip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 300))) + data[at:]


def _remove(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.choice((1, 2, 8, 300)) :]


def _repeat(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, size = rng.randint(0, len(data)), rng.choice((1, 8, 100))
    return data[:at] + data[at : at + size] * rng.choice((2, 3, 200)) + data[at + size :]


def _cut(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _number(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """An integer at the end of its range, as fixed bytes or as protobuf writes it, over others."""
    number, at = rng.choice(_SIZES), rng.randint(0, len(data))
    if rng.random() < 0.3:
        at = 0  # where lengths of headers stand
    if rng.random() < 0.5:
        width = rng.choice((1, 2, 4, 8))
        written = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
    else:
        groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
        written = bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
    return data[:at] + written + data[at + len(written) :]


_BYTES: list[Mutation] = [_flip, _insert, _remove, _repeat, _cut, _splice, _number]


def of_json(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Values of another kind, numbers at their ends, keys swapped, lost or twice, deep nesting."""
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(rng, tree)
    return _written(rng, tree, None)


def of_sealed(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same to a file that ends in its own digest, which is made to fit again."""
    tree = json.loads(data)
    del tree["sha256_of_the_above"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(rng, tree)
    above = _written(rng, tree, 1).removesuffix(b"\n}")
    digest = hashlib.sha256(above).hexdigest()
    return above + f',\n "sha256_of_the_above": "{digest}"\n}}\n'.encode()


def of_safetensors(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same to the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header = of_json(rng, data[8 : 8 + size], others)
    length = len(header) if rng.random() < 0.8 else rng.choice(_SIZES)
    return length.to_bytes(8, "little") + header + data[8 + size :]


def _change(rng: Random, tree: Any) -> None:
    places = list(_places(tree))
    if not places:
        return
    inside, key = rng.choice(places)
    match rng.randrange(5):
        case 0 | 1:
            inside[key] = rng.choice(_STRANGE)
        case 2:
            del inside[key]
        case 3:
            other, where = rng.choice(places)
            with contextlib.suppress(LookupError):  # a list that has become shorter
                inside[key], other[where] = other[where], inside[key]
        case _:
            if isinstance(inside, dict):
                inside[rng.choice(["", "x" * 300, f"{key} ", f"{key}".upper()])] = inside[key]
            else:
                inside.append(rng.choice(_STRANGE))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    found, waiting = [], [tree]
    while waiting and len(found) < 2000:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        found += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    return found


def _written(rng: Random, tree: Any, indent: int | None) -> bytes:
    text = json.dumps(_unshared(tree), indent=indent)
    depth = rng.choice((20, 900, 60_000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    if rng.random() < 0.1 and (keys := re.findall(r'"[^"\\]{1,40}":', text)):
        text = text.replace(rng.choice(keys), rng.choice(keys))  # now twice, perhaps
    return text.encode()


def _unshared(tree: Any, depth: int = 0) -> Any:
    """A swap may have put a table into itself."""
    if depth > 40:
        return None
    if isinstance(tree, dict):
        return {key: _unshared(value, depth + 1) for key, value in tree.items()}
    return [_unshared(value, depth + 1) for value in tree] if isinstance(tree, list) else tree


def of_protobuf(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Fields of an ONNX model emptied, repeated, swapped, and set to the ends of their ranges."""
    model = ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        messages = list(_messages(model))
        message = rng.choice(messages)
        field = rng.choice(list(message.DESCRIPTOR.fields))
        # Values that a field cannot hold, or a tree that has grown too large.
        with contextlib.suppress(ValueError, TypeError, DecodeError):
            _set(rng, message, field, messages)
    return model.SerializeToString()


def _messages(message: Message) -> list[Message]:
    found, waiting = [], [message]
    while waiting and len(found) < 500:
        inside = waiting.pop()
        found.append(inside)
        for field, value in inside.ListFields():
            if field.message_type is not None:
                waiting += list(value) if field.is_repeated else [value]
    return found


def _set(rng: Random, message: Message, field: Any, messages: Sequence[Message]) -> None:
    values = getattr(message, field.name)
    alike = [m for m in messages if field.message_type and m.DESCRIPTOR is field.message_type]
    if not field.is_repeated:
        if rng.random() < 0.2:
            message.ClearField(field.name)
        elif field.message_type is not None:
            if alike:
                values.CopyFrom(_copy(rng.choice(alike)))
        else:
            setattr(message, field.name, _scalar(rng, field, values))
        return
    match rng.randrange(4):
        case 0:
            message.ClearField(field.name)
        case 1 if len(values):
            del values[rng.randrange(len(values))]
        case 2 if len(values):
            kept = [_copy(value) if isinstance(value, Message) else value for value in values]
            rng.shuffle(kept)
            message.ClearField(field.name)
            values.extend(kept)
        case _ if field.message_type is not None:
            if alike:
                values.append(_copy(rng.choice(alike)))
        case _:
            first = values[0] if len(values) else None
            values.extend([_scalar(rng, field, first)] * rng.choice((1, 1, 9)))


def _copy(message: Message) -> Message:
    """Apart from its tree, which it may be put into."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _scalar(rng: Random, field: Any, value: Any) -> Any:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -1.0, 1e-38, 3e38, float("nan"), float("inf"), -float("inf")])
    if field.type == field.TYPE_BYTES:
        return of_bytes(rng, value or b"", [b"\0" * 64])
    if field.cpp_type == field.CPPTYPE_STRING:
        names = ["", "x", "Conv", "Relu", "Loop", "If", "com.microsoft", "ai.onnx.ml", "../x\0\n"]
        return rng.choice([*names, f"{value}"[:-1], f"{value}" * 50])
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.randrange(-1, 30)
    sign = rng.choice((1, -1))
    return rng.choice([sign * size for size in _SIZES if size < 2**31] + [sign * 2**62])


def of_zip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Entries of a zip file damaged, renamed, lost or there twice, under checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
        kind = archive.infolist()[0].compress_type
    at = rng.randrange(len(entries))
    name, content = entries[at]
    match rng.randrange(8):
        case 0:
            entries[at] = (rng.choice(["", "../x", "x" * 300, name.upper()]), content)
        case 1:
            del entries[at]
        case 2:
            entries.append(entries[at])
        case 3:
            entries[at] = (name, bytes(rng.choice((0, 10_000_000))))
            kind = zipfile.ZIP_DEFLATED
        case 4 | 5:
            entries[at] = (name, _renumbered(rng, content))
        case _:
            entries[at] = (name, of_bytes(rng, content, [content]))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two entries of one name are meant
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in entries:
                archive.writestr(zipfile.ZipInfo(name), content, kind)
    return buffer.getvalue()


def _renumbered(rng: Random, content: bytes) -> bytes:
    """Other digits in the first line, where numpy keeps shapes, in as many places."""
    head, tail = content[:128], content[128:]
    digits = [match.start() for match in re.finditer(rb"\d", head)]
    changed = bytearray(head)
    for at in rng.sample(digits, min(len(digits), rng.choice((1, 2, 5)))):
        changed[at] = rng.choice(b"0123456789-")
    return bytes(changed) + tail


def of_tar(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Members of an archive damaged, renamed, lost or moved, under checksums that fit."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        contents = [(member, file.read() if file else b"") for member, file in members]
    at = rng.randrange(len(contents))
    member, content = contents[at]
    match rng.randrange(6):
        case 0:
            member.name = rng.choice(
                ["../x", "/x", "x", "manifest.json", "labels.txt.xz", "x" * 90]
            )
        case 1:
            del contents[at]
        case 2:
            contents.insert(rng.randrange(len(contents)), contents[at])
        case 3:
            member.type = rng.choice(
                [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"x", b"g"]
            )
        case 4 if member.name.endswith(".json"):
            contents[at] = (member, of_json(rng, content, others))
        case _:
            contents[at] = (member, of_bytes(rng, content, [content]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in contents:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
