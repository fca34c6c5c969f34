"""Weights on disk: `weights.safetensors` under plain names, and `architecture.json` beside it.

No pickles. Everything is compared with what the architecture says before a network is touched.
`architecture.json` may name a factory to import: load folders that you trust.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from advprune.errors import BadData, CannotCreate, Incompatible, NotFound
from advprune.files import write
from advprune.models import Architecture, build

WEIGHTS = "weights.safetensors"
ARCHITECTURE = "architecture.json"

_NAMED_IN_A_MESSAGE = 5


def save(net: nn.Module, arch: Architecture, folder: Path) -> None:
    """Write both files; the folder is made where it is missing.

    Raises:
        Incompatible: the network still carries parametrisations, whose names no fresh network has.
        CannotCreate: the folder cannot be made.
        StorageFailed: a write failed, for instance because the disk is full.
    """
    state = net.state_dict()
    masked = next((name for name in state if "parametrizations" in name), None)
    if masked is not None:
        raise Incompatible(f"checkpoint: {masked} is parametrised; bake() the network, then save")
    # Clones, because safetensors refuses the storage that tied weights share.
    form = torch.contiguous_format
    plain = {name: value.detach().cpu().clone(memory_format=form) for name, value in state.items()}
    text = json.dumps(arch.to_dict(), indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(f"checkpoint: cannot write {folder}: {error.strerror}") from error
    write(folder / WEIGHTS, safetensors.torch.save(plain))
    write(folder / ARCHITECTURE, text.encode())


def load(folder: Path) -> nn.Sequential:
    """The network that `save` wrote, on the CPU, in training mode.

    Raises:
        NotFound, BadData, Incompatible: as `load_architecture` and `load_into`.
    """
    net = build(load_architecture(folder))
    load_into(net, folder / WEIGHTS)
    return net


def load_architecture(folder: Path) -> Architecture:
    """What `folder` says its network is.

    Raises:
        NotFound: there is no such file.
        BadData: it is not JSON, or not an architecture.
    """
    path = folder / ARCHITECTURE
    try:
        return Architecture.from_dict(json.loads(_read(path)))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}: not JSON: {error}; write the checkpoint again") from error
    except BadData as error:
        raise BadData(f"{path}: {error}; write the checkpoint again") from error


def load_into(net: nn.Module, path: Path) -> None:
    """Replace every parameter and buffer of `net` by those of a weights file, or change nothing.

    Raises:
        NotFound: there is no such file.
        BadData: it is broken, or holds NaN or infinite weights.
        Incompatible: its names, shapes or dtypes are not those of `net`.
    """
    try:
        found = safetensors.torch.load(_read(path))
    except SafetensorError as error:
        raise BadData(f"{path}: not a safetensors file: {error}; write it again") from error
    fill(net, found, path)


def fill(
    net: nn.Module,
    found: dict[str, Tensor],
    path: Path,
    remedy: str = "build the architecture that they were saved with, masks applied",
) -> None:
    """Replace every parameter and buffer of `net` by those found in a file, or change nothing.

    Args:
        remedy: what to do where the file is of another network.

    Raises:
        BadData: some are NaN or infinite.
        Incompatible: their names, shapes or dtypes are not those of `net`.
    """
    expected = net.state_dict()
    differences = list(_differences(expected, found))
    if differences:
        named = "; ".join(differences[:_NAMED_IN_A_MESSAGE])
        if _shapes(expected) == _shapes(found):
            raise Incompatible(
                f"{path}: weights in another precision, {len(differences)} differences: {named}; "
                "save them in that, or attack them with --cast"
            )
        raise Incompatible(
            f"{path}: weights of another network, {len(differences)} differences: {named}; {remedy}"
        )
    for name, value in found.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise BadData(
                f"{path}: {name} holds {bad} NaN or infinite values of {value.numel()}; "
                "use an earlier or another checkpoint"
            )
    net.load_state_dict(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> Iterator[str]:
    for name, want in expected.items():
        if name not in found:
            yield f"{name} {form_of(want)} is missing"
        elif form_of(found[name]) != form_of(want):
            yield f"{name} is {form_of(found[name])}, must be {form_of(want)}"
    for name in sorted(found.keys() - expected.keys()):
        yield f"{name} {form_of(found[name])} is unknown"


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def form_of(tensor: Tensor) -> str:
    """Its type and shape, as a message names them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
