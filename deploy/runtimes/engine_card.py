"""The card beside an engine, read and held against this machine before the engine is touched.

An engine is native code: handing it to another TensorRT or GPU than it was built for ends in an
obscure refusal at best. `export.engine_card` writes the card; needs the standard library only.
"""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.errors import DeployError
from deploy.sealed import unseal

SCHEMA = 2
REBUILD = "rebuild it here: advprune export RUN --target tensorrt"
TYPES = ("float32", "float16", "uint8")
_AMPERE = (8, 0)
_MALFORMED = (ValueError, LookupError, TypeError)
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class End:
    """An input or output: its name, shape with -1 for the free batch, and numpy's type name."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class EngineCard:
    """What an engine is and which machine it was built on.

    Attributes:
        sha256: digest of the engine that the card belongs to.
        tensorrt: version that built it, e.g. "11.4.0.106".
        gpu: name of the GPU that it was built on.
        compute_capability: of that GPU, e.g. "8.7".
        platform: "linux/x86_64", say.
        version_compatible: later versions of the same major one run it too.
        hardware_compatible: other GPUs from Ampere on run it too.
        max_batch: largest batch that it takes.
        input: what it takes.
        output: what it gives.
        precision: of the graph that it was built from, "int8", "fp16" or "fp32".
    """

    sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    platform: str
    version_compatible: bool
    hardware_compatible: bool
    max_batch: int
    input: End
    output: End
    precision: str


def read_card(engine: Path, plan: bytes) -> EngineCard:
    """The card of an engine.

    Args:
        engine: the engine's file; the card is beside it, with ".json" after the name.
        plan: what is in that file.

    Raises:
        DeployError: 66, there is no card; 65, it is none of this schema, or of another engine.
    """
    path = engine.with_name(f"{engine.name}.json")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DeployError(
            f"{path}: the engine's card cannot be read ({error.strerror}); copy it from where the "
            f"engine was built, or {REBUILD}",
            66,
        ) from error
    try:
        card = _parse(unseal(text))
    except _MALFORMED as error:
        raise DeployError(f"{path}: not an engine card ({error!r}); {REBUILD}", 65) from error
    found = hashlib.sha256(plan).hexdigest()
    if card.sha256 != found:
        raise DeployError(
            f"{engine}: its digest is {found[:12]}, its card is of {card.sha256[:12]}; copy both "
            f"again, or {REBUILD}",
            65,
        )
    return card


def check_version(card: EngineCard, engine: Path, tensorrt: str) -> None:
    """Refuse an engine of another platform or TensorRT.

    Args:
        tensorrt: the version here.

    Raises:
        DeployError: 78, with both values.
    """
    here = f"{platform.system()}/{platform.machine()}".lower()
    if card.platform != here:
        raise DeployError(f"{engine}: built on {card.platform}, this is {here}; {REBUILD}", 78)
    built, runs = _release(card.tensorrt), _release(tensorrt)
    fits = built[:1] == runs[:1] and built <= runs if card.version_compatible else built == runs
    if not fits:
        also = " or later" if card.version_compatible else ""
        raise DeployError(
            f"{engine}: built for TensorRT {card.tensorrt}{also}, here is {tensorrt}; {REBUILD}", 78
        )


def check_gpu(card: EngineCard, engine: Path, name: str, compute_capability: str) -> None:
    """Refuse an engine of another kind of GPU.

    Args:
        name: of the GPU here.
        compute_capability: of the GPU here.

    Raises:
        DeployError: 78, with both values.
    """
    if card.hardware_compatible:
        fits = _release(compute_capability) >= _AMPERE
    else:
        fits = card.compute_capability == compute_capability
    if not fits:
        wanted = "8.0 or later" if card.hardware_compatible else card.compute_capability
        raise DeployError(
            f"{engine}: built on {card.gpu} for compute capability {wanted}, here is {name} with "
            f"{compute_capability}; {REBUILD}",
            78,
        )


def _release(version: str) -> tuple[int, ...]:
    """Major, minor and patch: the fourth number is of the package, not of the engine's format."""
    return tuple(int(part) for part in version.split(".")[:3])


def _parse(content: dict[str, Any]) -> EngineCard:
    """A card, every value of the type that it must have.

    Raises:
        one of _MALFORMED: it is not what was written.
    """
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']}")
    card = EngineCard(
        sha256=_typed(content["sha256"], str),
        tensorrt=_typed(content["tensorrt"], str),
        gpu=_typed(content["gpu"], str),
        compute_capability=_typed(content["compute_capability"], str),
        platform=_typed(content["platform"], str),
        version_compatible=_typed(content["version_compatible"], bool),
        hardware_compatible=_typed(content["hardware_compatible"], bool),
        max_batch=_typed(content["batch"]["max"], int),
        input=_end(content["input"]),
        output=_end(content["output"]),
        precision=_typed(content["precision"], str),
    )
    _release(card.tensorrt)
    if card.max_batch < 1:
        raise ValueError(f"batches of {card.max_batch}")
    if len(card.output.shape) != 2 or card.output.shape[0] != -1 or card.output.shape[1] < 1:
        raise ValueError(f"logits of shape {card.output.shape}")
    return card


def _end(content: dict[str, Any]) -> End:
    shape = tuple(_typed(size, int) for size in content["shape"])
    if content["type"] not in TYPES:
        raise ValueError(f"type {content['type']!r}")
    return End(_typed(content["name"], str), shape, _typed(content["type"], str))


def _typed(value: Any, kind: type[_Kind]) -> _Kind:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
