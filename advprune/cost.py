"""What is left of a network's cost when a share of each layer, or of each channel group, is kept.

A convolution's multiply-accumulates are in proportion to its outputs and to its inputs, so that
with density a_g of channel group g the cost of the network, relative to the whole, is

    C(a) = sum_l  share_l (o_l0 + sum_g o_lg a_g) (i_l0 + sum_g i_lg a_g)

o_lg being the part of layer l's outputs that belongs to group g, and o_l0 the part that no one can
remove; i likewise. The share of weights or channels that is kept is the linear case. C(1) = 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advprune.channels import ChannelGroup
from advprune.stats import layer_macs
from advprune.surgery import depthwise, widths


@dataclass(frozen=True)
class Cost:
    """The polynomial above.

    Attributes:
        names: G groups or layers, in the order of the densities.
        share: float64 (L,), summing to one.
        outputs, inputs: float64 (L, 1 + G), rows summing to one; column 0 cannot be removed.
    """

    names: tuple[str, ...]
    share: Tensor
    outputs: Tensor
    inputs: Tensor

    def __call__(self, densities: Tensor) -> Tensor:
        """C(a), a scalar in (0, 1], for densities (G,) in [0, 1]; differentiable."""
        share, outputs, inputs = (t.to(densities) for t in (self.share, self.outputs, self.inputs))
        terms = torch.cat([densities.new_ones(1), densities])
        return (share * (outputs @ terms) * (inputs @ terms)).sum()

    def tensors(self) -> dict[str, Tensor]:
        """All but the names."""
        return {"share": self.share, "outputs": self.outputs, "inputs": self.inputs}

    def of(self, kept: Mapping[str, int], sizes: Mapping[str, int]) -> float:
        """C of whole numbers kept."""
        densities = [kept[name] / sizes[name] for name in self.names]
        return float(self(torch.tensor(densities, dtype=torch.float64)))

    def uniform(self, density: float) -> float:
        """C where every group has this density."""
        return float(self(torch.full((len(self.names),), density, dtype=torch.float64)))


def of_sizes(sizes: Mapping[str, int]) -> Cost:
    """The share that is kept of all weights, or channels, together."""
    count = torch.tensor([0, *sizes.values()], dtype=torch.float64)
    whole = torch.zeros(1, len(count), dtype=torch.float64)
    whole[0, 0] = 1.0
    return Cost(tuple(sizes), torch.ones(1, dtype=torch.float64), count[None] / count.sum(), whole)


def of_macs(net: nn.Module, groups: Iterable[ChannelGroup], shape: tuple[int, int, int]) -> Cost:
    """The share that is kept of the multiply-accumulates of one image.

    Args:
        shape: (C, H, W) of one image.
    """
    groups = list(groups)
    macs = layer_macs(net, shape)
    sizes = widths(net)
    rows = {name: row for row, name in enumerate(macs)}
    parts = torch.zeros(2, len(macs), 1 + len(groups), dtype=torch.float64)
    for column, group in enumerate(groups, start=1):
        for slot in (*group.makers, *group.readers):
            length = sizes[slot.layer][slot.axis]
            parts[slot.axis, rows[slot.weight], column] += slot.index.numel() / length
    for name, row in rows.items():
        if depthwise(net.get_submodule(name.removesuffix(".weight"))):
            parts[1, row] = 0.0  # each output reads one input, however many there are
    parts[:, :, 0] = 1.0 - parts[:, :, 1:].sum(dim=2)
    share = torch.tensor(list(macs.values()), dtype=torch.float64)
    return Cost(tuple(g.name for g in groups), share / share.sum(), parts[0], parts[1])
