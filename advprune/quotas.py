"""Layers as an agent that gives them densities sees them, and densities as exact counts."""

import torch
from torch import Tensor, nn

from advprune.allocate import distribute
from advprune.curvature import recorded
from advprune.frozen import same_modes
from advprune.models import prunable
from advprune.stats import layer_macs


def spend(densities: Tensor, sizes: Tensor, total: int) -> list[int]:
    """Densities as whole numbers of this sum: all scaled alike, none above the size of its layer.

    Args:
        densities, sizes: (L,), above zero.

    Raises:
        BadData: the total is smaller than the number of layers.
    """
    wanted, full = densities.double() * sizes, torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        scaled = wanted * ((total - sizes[full].sum()) / wanted[~full].sum())
        over = ~full & (scaled > sizes * (1.0 + 1e-9))
        if not over.any():
            break
        full |= over
    scaled = torch.where(full, sizes.double(), scaled)
    shares = {str(layer): float(share) for layer, share in enumerate(scaled)}
    whole = {str(layer): int(size) for layer, size in enumerate(sizes)}
    return list(distribute(shares, whole, total).values())


@torch.no_grad()
def described(
    net: nn.Module, shape: tuple[int, int, int]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Index, widths, input size, stride, kernel and multiply-accumulates of every prunable layer.

    Returns:
        Those eight numbers (8,), and the last of them once more, by the name of the weight.
    """
    layers, macs = prunable(net), layer_macs(net, shape)
    with same_modes(net), recorded(layers) as records:
        net.eval()(torch.zeros(1, *shape, device=next(net.parameters()).device))
    found: dict[str, Tensor] = {}
    for index, (name, layer) in enumerate(layers.items()):
        outputs, inputs = layer.weight.shape[:2]
        seen = records[name].inputs[0].shape if records[name].inputs else ()
        size = (*seen[2:], 1, 1)[:2]
        stride, kernel = (
            (layer.stride[0], layer.kernel_size[0]) if isinstance(layer, nn.Conv2d) else (0, 1)
        )
        numbers = (index, inputs, outputs, *size, stride, kernel, macs[name])
        found[name] = torch.tensor([float(number) for number in numbers])
    return found, macs
