"""Weights to start from: what another training left, of a network that may know other classes."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from advprune import repro
from advprune.errors import BadData
from advprune.models import Architecture, assemble, logits_layer, prunable
from advprune.models.checkpoint import fill
from advprune.models.state_dict import cast_as, named_as, read_state_dict

_REMEDY = "give the --model that they were saved with; only the layer of logits may have other rows"
_LEAST_CLASSES = 2
_SIDE = 32  # of images that are never shown


@dataclass(frozen=True)
class Pretrained:
    """A file of weights that was read.

    Attributes:
        sha256: its digest.
        state: the tensors under the names that the file gives them.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std that the weights were trained under, where the file has them; ours do."""
        found = [self.state.get(f"normalize.{name}") for name in ("mean", "std")]
        if any(value is None for value in found):
            return None
        mean, std = (tuple(value.flatten().tolist()) for value in found if value is not None)
        return mean, std


def open_weights(path: Path, sha256: str | None = None) -> Pretrained:
    """Read a file of weights, of which nothing is run.

    Args:
        sha256: what its digest must be.

    Raises:
        NotFound, BadData: as `read_state_dict`.
    """
    state, loaded = read_state_dict(path, sha256=sha256)
    return Pretrained(path, loaded.sha256, state)


def check_model(weights: Pretrained, model: str) -> None:
    """Refuse weights of another network before any images are known.

    `model` is built for as many classes and colours as the file knows, and must take it whole.

    Raises:
        Refused, NotFound, Unavailable, Incompatible: as `build`.
        BadData, Incompatible: as `start_from`.
    """
    net = any_size(model)
    found = named_as(weights.state, net)
    head, stem = (found.get(name) for name in (logits_layer(net), next(iter(prunable(net)))))
    classes = len(head) if head is not None and head.ndim else _LEAST_CLASSES
    channels = stem.shape[1] if stem is not None and stem.ndim > 1 else 3
    if (classes, channels) != (_LEAST_CLASSES, 3):
        net = _built(model, max(classes, _LEAST_CLASSES), max(channels, 1))
    start_from(net, weights)


def start_from(net: nn.Module, weights: Pretrained) -> str:
    """Put the weights into `net`; where it has other classes, its layer of logits stays as it is.

    Returns:
        What became of them, for people.

    Raises:
        BadData: some are NaN or infinite.
        Incompatible: anything but the number of classes differs; names what.
    """
    expected, found = net.state_dict(), named_as(weights.state, net)
    head = logits_layer(net).removesuffix(".weight")
    rows = {name: expected[name] for name in (f"{head}.weight", f"{head}.bias") if name in expected}
    told = f"began from weights {weights.sha256[:12]}"
    if all(_differs_in_rows(found.get(name), own) for name, own in rows.items()):
        there, here = (len(state[f"{head}.weight"]) for state in (found, expected))
        found = found | rows
        told += f"; {head} begins anew: {there} classes there, {here} here"
    fill(net, cast_as(found, net), weights.path, _REMEDY)
    return told


def any_size(model: str) -> nn.Module:
    """The network for some classes and colours: which layers it has depends on neither.

    Raises:
        Refused, NotFound, Unavailable, Incompatible: as `build`.
    """
    return _built(model, _LEAST_CLASSES, 3)


def _built(model: str, classes: int, channels: int) -> nn.Module:
    """Raises BadData where a file claims more than an architecture may have."""
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    try:
        arch = Architecture(model, classes, (channels, _SIDE, _SIDE), zeros, ones)
    except BadData as error:
        raise BadData(f"weights of a network for other images: {error}; {_REMEDY}") from error
    with repro.seeded(0, "weights"):
        return assemble(arch)


def _differs_in_rows(found: Tensor | None, own: Tensor) -> bool:
    """Whether only the number of rows, one for each class, is another."""
    return (
        found is not None
        and found.ndim == own.ndim
        and found.shape[1:] == own.shape[1:]
        and (len(found) != len(own))
    )
