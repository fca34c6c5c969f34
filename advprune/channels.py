"""Groups of channels that stand or fall together, and how to take channels out of a network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advprune.surgery import cut, widths


@dataclass(frozen=True)
class Slot:
    """Where the channels of a group lie along one axis of one layer.

    Attributes:
        layer: the name of the module.
        axis: 0 for its outputs, 1 for its inputs.
        index: int64 (width, repeat), the positions that belong to each channel; behind a flatten
            a channel has as many as it had pixels.
    """

    layer: str
    axis: int
    index: Tensor

    @property
    def weight(self) -> str:
        return f"{self.layer}.weight"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are made, passed on and read together.

    Attributes:
        name: the weight of the first layer that makes them.
        width: how many there are.
        makers: rows of convolutions and linear layers, depthwise ones included.
        readers: columns of convolutions and linear layers.
        norms: batch norms in between.
    """

    name: str
    width: int
    makers: tuple[Slot, ...]
    readers: tuple[Slot, ...]
    norms: tuple[Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.makers, *self.readers, *self.norms)


@torch.no_grad()
def read(group: ChannelGroup, weights: Mapping[str, Tensor]) -> Tensor:
    """bool (width,): whether anything that reads the channel is not zero; of weights or masks."""
    alive = torch.zeros(group.width, dtype=torch.bool)
    for slot in group.readers:
        columns = weights[slot.weight].movedim(1, 0).flatten(1).any(dim=1).cpu()
        alive |= columns[slot.index].any(dim=1)
    return alive


def kept_positions(
    groups: Iterable[ChannelGroup], kept: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> the positions of its outputs and of its inputs that stay, for those that change.

    Args:
        kept: bool (width,) for each group, by its name.
        sizes: as of `surgery.widths`.
    """
    stays: dict[str, tuple[Tensor, Tensor]] = {}
    for group in groups:
        gone = ~kept[group.name].cpu()
        for slot in group.slots:
            outputs, inputs = sizes[slot.layer]
            both = stays.setdefault(
                slot.layer,
                (torch.ones(outputs, dtype=torch.bool), torch.ones(inputs, dtype=torch.bool)),
            )
            both[slot.axis][slot.index[gone].flatten()] = False
    return {name: (o.nonzero().flatten(), i.nonzero().flatten()) for name, (o, i) in stays.items()}


def remove(net: nn.Module, groups: Iterable[ChannelGroup], kept: Mapping[str, Tensor]) -> None:
    """Cut channels out of `net`, in place.

    Args:
        kept: bool (width,) for each group, by its name.
    """
    for name, (outputs, inputs) in kept_positions(groups, kept, widths(net)).items():
        device = next(net.parameters()).device
        cut(net.get_submodule(name), outputs.to(device), inputs.to(device))
