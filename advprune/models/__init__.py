"""Networks by name: raw float32 logits (N, K) out of images (N, C, H, W) in [0, 1].

Plain `nn.Module`s without masks, quantisers or options; normalisation is their first layer.
"""

import difflib
from collections import OrderedDict

import torch
from torch import Tensor, nn

from advprune import repro
from advprune.errors import Incompatible, Refused
from advprune.models import factory, registry, timm_nets, torchvision_nets

# Imported for what they register.
from advprune.models import lenet, preact, resnet, torchvision_cifar, vgg  # noqa: F401 # isort: skip
from advprune.models.architecture import Architecture
from advprune.models.freezing import freeze, is_frozen
from advprune.models.init import he_
from advprune.models.normalize import Normalize
from advprune.models.registry import describe, names, register
from advprune.models.timm_nets import timm_count
from advprune.models.torchvision_nets import torchvision_names
from advprune.surgery import resize

__all__ = [
    "Architecture",
    "Normalize",
    "assemble",
    "build",
    "describe",
    "logits_layer",
    "names",
    "prunable",
    "register",
    "source_digest",
    "timm_count",
    "torchvision_names",
    "weighted",
]

_TORCHVISION = "torchvision:"
_TIMM = "timm:"


def build(arch: Architecture, seed: int = 0) -> nn.Sequential:
    """A freshly initialised network on the CPU, in training mode: `normalize`, then `network`.

    Where the architecture names widths, layers keep that many of their first channels; where it
    names frozen layers, these are marked (`freezing`). The first
    weights depend on the architecture and the seed alone; torch's global generators are left as
    they were.

    Raises:
        Refused: the name is not known.
        NotFound: a user's factory cannot be imported.
        Incompatible: the network does not turn such images into such logits.
        BadData: it has no layers of such widths, or none that are said to be frozen.
    """
    with repro.seeded(seed, "weights"):
        net = assemble(arch)
        resize(net, arch.widths)
        freeze(net, arch.frozen)
        _probe(net.eval(), arch)
    return net.train()


def assemble(arch: Architecture) -> nn.Sequential:
    """As `build`, in full widths and without being shown an image; weights as torch draws them.

    Raises:
        Refused, NotFound, Incompatible: as `build`.
    """
    layers = OrderedDict(normalize=Normalize(arch.mean, arch.std), network=_network(arch))
    return nn.Sequential(layers).cpu()


def source_digest(model: str) -> str | None:
    """SHA-256 of the file that a user's factory is in; None for the networks that have a name.

    Needs no images, so that a wrong name is refused before any are read.

    Raises:
        Refused: the name is not known.
        NotFound: a user's factory cannot be imported.
        Unavailable: timm is not installed.
    """
    if model in names():
        return None
    if model.startswith(_TIMM):
        timm_nets.check(model.removeprefix(_TIMM))
        return None
    bare = model.removeprefix(_TORCHVISION)
    if ":" in bare:
        return factory.source_digest(model)
    if bare not in torchvision_names():
        raise Refused(_unknown(model))
    return None


def prunable(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Those of `weighted` that are not frozen."""
    return {name: layer for name, layer in weighted(net).items() if not is_frozen(layer)}


def weighted(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every convolution and linear layer, by the name of its weight: "network.conv1.weight"."""
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def logits_layer(net: nn.Module) -> str:
    """The name of the weight that makes the logits: of the layer that was registered last.

    Raises:
        Incompatible: there is no convolution and no linear layer.
    """
    layers = list(weighted(net))
    if not layers:
        raise Incompatible("model: has no convolution and no linear layer; nothing can be pruned")
    return layers[-1]


def _network(arch: Architecture) -> nn.Module:
    """Our own names first: torchvision's networks of the same name expect larger images."""
    channels = arch.shape[0]
    if arch.model in names():
        network = registry.create(arch.model, arch.classes, channels)
        he_(network)
        return network
    if arch.model.startswith(_TIMM):
        return timm_nets.create(arch.model.removeprefix(_TIMM), arch.classes, channels)
    bare = arch.model.removeprefix(_TORCHVISION)
    if ":" in bare:
        return factory.create(arch.model, arch.classes, channels)
    if bare not in torchvision_names():
        raise Refused(_unknown(arch.model))
    return torchvision_nets.create(bare, arch.classes, channels)


def _unknown(model: str) -> str:
    known = [*names(), *torchvision_names()]
    known += [_TORCHVISION + name for name in torchvision_names()]
    nearest = difflib.get_close_matches(model, dict.fromkeys(known))
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ";"
    return f"model {model!r} is not known{hint} `advprune models` lists them all"


def _probe(net: nn.Module, arch: Architecture) -> None:
    """Two black images must give (2, K) float32 logits; better now than after hours of training."""
    try:
        with torch.no_grad():
            logits = net(torch.zeros(2, *arch.shape))
    # Any network may fail on a shape that it is not made for, each in its own way.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Incompatible(
            f"model {arch.model!r} cannot take images of shape {arch.shape}: {reason}; "
            "choose a model made for them (`advprune models`) or another image size"
        ) from error
    expected = (2, arch.classes)
    if not isinstance(logits, Tensor):
        got = type(logits).__name__
    elif logits.shape != expected or logits.dtype != torch.float32:
        got = f"{logits.dtype} {tuple(logits.shape)}"
    else:
        return
    raise Incompatible(
        f"model {arch.model!r} must turn two images of shape {arch.shape} into float32 logits of "
        f"shape {expected}, gave {got}; return raw logits, one per class"
    )
