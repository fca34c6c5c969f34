"""Weights from elsewhere: the PyTorch checkpoints of other people's code, or safetensors.

A pickle is a program. It is read by torch's restricted reader, which runs nothing and refuses what
is no plain data, and then compared name by name: what other loaders drop in silence, masks above
all, makes the difference between a pruned network and a dense one.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from advprune.errors import BadData, NotFound
from advprune.models.checkpoint import fill

# Ten times the largest classifier here, and little enough to hold twice.
LARGEST_FILE = 2 << 30
WRAPPERS = ("state_dict", "net", "model")
_PICKLES = {".pt", ".pth", ".tar"}
_ZIP = b"PK\x03\x04"  # by which torch tells its archives from older files
_PARALLEL = "module."
_INNER = "network."
_NAMED_IN_A_MESSAGE = 5
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Loaded:
    """Where weights came from.

    Attributes:
        sha256: digest of the file.
        wrapper: the entry that held them; None where the file is the state dict itself.
    """

    sha256: str
    wrapper: str | None


def load_state_dict(
    net: nn.Module, path: Path, wrappers: Sequence[str] = WRAPPERS, *, cast: bool = False
) -> Loaded:
    """Replace every parameter and buffer of `net` by those of a checkpoint, or change nothing.

    The names may be those of `net`, or those of the network inside it, behind `normalize`: then
    the statistics of `normalize` stay. Build `net` with those that the checkpoint was trained
    under, mean 0 and std 1 where it saw pixels in [0, 1] as they are. The prefix that DataParallel
    puts before every name is taken off.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.pth.tar` as `torch.save` writes them.
        wrappers: entries that may hold the state dict, beside whatever else.
        cast: turn floating-point weights of another precision into that of `net`, as float16 into
            float32; else they are refused.

    Raises:
        NotFound: there is no such file.
        BadData: it is too large, broken, needs code to be read, holds no state dict, or holds
            tensors that are not finite or larger than their data.
        Incompatible: a name, shape or dtype differs from those of `net`.
    """
    found, loaded = read_state_dict(path, wrappers)
    named = named_as(found, net)
    fill(net, cast_as(named, net) if cast else named, path)
    return loaded


def read_state_dict(
    path: Path, wrappers: Sequence[str] = WRAPPERS, sha256: str | None = None
) -> tuple[dict[str, Tensor], Loaded]:
    """The tensors of a checkpoint under the names that the file gives them.

    Args:
        sha256: what the digest must be; compared before anything is parsed.

    Raises:
        NotFound, BadData: as `load_state_dict`; also where the digest is another.
    """
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, digest):
        raise BadData(f"{path}: changed since this command began; run the same command again")
    wrapper, found = _unwrap(_parse(data, path), wrappers, path)
    return found, Loaded(digest, wrapper)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise BadData(f"{path}: {size} bytes are more than {LARGEST_FILE}; is it a checkpoint?")
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _parse(data: bytes, path: Path) -> object:
    """Whatever the file holds, without running any of it."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise BadData(f"{path}: not a safetensors file: {error}; fetch it again") from error
    if path.suffix not in _PICKLES:
        raise BadData(f"{path}: not a known kind; give .safetensors, .pt, .pth or .pth.tar")
    _check_unpacked_size(data, path)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A broken pickle makes torch and its unpickler fail in their own ways.
    except Exception as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise BadData(
                f"{path}: names {code[1]}, and reading that could run code; convert the file to "
                "safetensors where you trust it"
            ) from error
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise BadData(f"{path}: not a PyTorch checkpoint ({reason}); fetch it again") from error


def _check_unpacked_size(data: bytes, path: Path) -> None:
    """torch stores its archives uncompressed; one that is not may unpack to anything."""
    if not data.startswith(_ZIP):
        return  # an old pickle, or broken: torch will say
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    # What this reader cannot take, torch's own might, however large it becomes.
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadData(f"{path}: not a PyTorch checkpoint ({error}); fetch it again") from error
    if size > LARGEST_FILE:
        raise BadData(f"{path}: unpacks to {size} bytes, more than {LARGEST_FILE}; do not use it")


def _unwrap(
    content: object, wrappers: Sequence[str], path: Path
) -> tuple[str | None, dict[str, Tensor]]:
    """The state dict, and the name of the entry that held it."""
    if not isinstance(content, Mapping):
        raise BadData(f"{path}: holds a {type(content).__name__}; save a state dict")
    entries: dict[Any, Any] = dict(content)
    wrapped = [key for key in wrappers if isinstance(entries.get(key), Mapping)]
    if len(wrapped) > 1:
        raise BadData(f"{path}: holds {' and '.join(wrapped)}; say which with wrappers")
    wrapper = wrapped[0] if wrapped else None
    state = dict(entries[wrapper]) if wrapper else entries
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        raise BadData(
            f"{path}: no state dict, neither as a whole nor under {', '.join(wrappers)}; "
            f"it holds {', '.join(map(repr, list(entries)[:_NAMED_IN_A_MESSAGE])) or 'nothing'}"
        )
    for name, value in state.items():
        _check_memory(name, value, path)
    return wrapper, {str(name): value.detach() for name, value in state.items()}


def _check_memory(name: object, value: Tensor, path: Path) -> None:
    """Strides of 0 expand a few bytes into any shape; touching them all would fill the memory."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise BadData(f"{path}: {name} is no plain tensor; save dense weights")
    needed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if needed > held:
        raise BadData(f"{path}: {name} is {needed} bytes large and holds {held}; do not use it")


def cast_as(found: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Floating-point weights in the precision that `net` has them in."""
    expected = net.state_dict()
    floats = {name for name, value in expected.items() if value.is_floating_point()}
    return {
        name: value.to(expected[name].dtype)
        if name in floats and value.is_floating_point()
        else value
        for name, value in found.items()
    }


def named_as(found: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The weights under the names of `net`, if they have names of its inner network."""
    if all(name.startswith(_PARALLEL) for name in found):
        found = {name.removeprefix(_PARALLEL): value for name, value in found.items()}
    expected = net.state_dict()
    if not found.keys().isdisjoint(expected):
        return found
    outer = {name: value for name, value in expected.items() if not name.startswith(_INNER)}
    if len(outer) == len(expected):
        return found
    return outer | {_INNER + name: value for name, value in found.items()}
