"""Gates in a network: they multiply what layers read, and fold into the weights that read it.

A gate stands at the inputs of all layers that read its channel. So channels that are added share a
gate, and a channel whose gate is shut reaches no one. Gates are not negative, so that this is the
same as a gate before the ReLU or max-pool that the layer reads.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.channels import ChannelGroup
from advprune.errors import Incompatible
from advprune.gates import Gates
from advprune.surgery import widths


class Gating(Gates):
    """Gates in force in every forward of a network, from here until they are folded.

    They become part of the layer that makes the first gated channels, which does not look at them:
    so parameters, modes and checkpoints of the network include them.

    Args:
        groups: as of `couple`.
        watched: names of layers whose inputs tell how far an attack moves the network.
        start: see `Gates`.
    """

    def __init__(
        self, net: nn.Module, groups: Sequence[ChannelGroup], watched: Sequence[str], start: float
    ) -> None:
        super().__init__({group.name: group.width for group in groups}, start)
        self.watched = tuple(watched)
        device = next(net.parameters()).device
        host = net.get_submodule(groups[0].makers[0].layer)
        host.add_module("gating", self.to(device))
        self._host = (host,)  # a tuple hides it: the host must not become a part of its gates
        self._sources = {name: index.to(device) for name, index in _sources(net, groups).items()}
        self._handles = [
            net.get_submodule(name).register_forward_pre_hook(partial(self._multiply, name))
            for name in self._sources
        ]

    def _multiply(self, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        scale = _spread(self(), self._sources[name])
        if len(scale) not in (1, len(x)):
            raise Incompatible(
                f"gates: layer {name} reads {len(x)} rows for {len(scale)} images, so a gate "
                "cannot be drawn for each image; use another method"
            )
        between = [1] * (x.dim() - 2)
        if isinstance(layer, nn.Linear):
            return (x * scale.reshape(len(scale), *between, -1),)
        return (x * scale.reshape(len(scale), -1, *between),)

    @torch.no_grad()
    def fold(self, net: nn.Module, gates: Tensor) -> None:
        """Multiply the columns that read each channel by its gate (G,), and take the hooks off."""
        for name, sources in self._sources.items():
            weight: Tensor = net.get_submodule(name).weight  # pyright: ignore
            weight.mul_(_spread(gates[None], sources).reshape(1, -1, *[1] * (weight.dim() - 2)))
        for handle in self._handles:
            handle.remove()
        del self._host[0].gating


def gating_of(net: nn.Module) -> Gating:
    """The gates in force in this network."""
    return next(module for module in net.modules() if isinstance(module, Gating))


def _sources(net: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Layer -> for each of its inputs the number of its gate, from one; zero where it has none."""
    sizes = widths(net)
    sources: dict[str, Tensor] = {}
    first = 1
    for group in groups:
        gates = torch.arange(first, first + group.width)
        for slot in group.readers:
            none = torch.zeros(sizes[slot.layer][1], dtype=torch.int64)
            sources.setdefault(slot.layer, none)[slot.index] = gates[:, None]
        first += group.width
    return sources


def _spread(gates: Tensor, sources: Tensor) -> Tensor:
    """Gates (N, G) -> factors (N, inputs) of a layer's inputs; one where there is no gate."""
    return F.pad(gates, (1, 0), value=1.0)[:, sources]
