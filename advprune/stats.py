"""What a network costs and what was taken out of it, counted rather than trusted."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advprune.errors import Incompatible, Refused
from advprune.models import prunable, weighted


def parameter_count(net: nn.Module) -> int:
    """How many learnable numbers the network holds, zeros included."""
    return sum(parameter.numel() for parameter in net.parameters())


def layer_counts(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Weight name -> (non-zero, total), over effective weights: what `forward` multiplies by."""
    counts = {}
    for name, module in prunable(net).items():
        weight = module.weight.detach()
        counts[name] = (int(torch.count_nonzero(weight)), weight.numel())
    return counts


def realised_sparsity(net: nn.Module) -> float:
    """The share of prunable weights that are zero, in [0, 1].

    Raises:
        Incompatible: the network has nothing to prune.
    """
    counts = layer_counts(net).values()
    total = sum(weights for _, weights in counts)
    if total == 0:
        raise Incompatible("sparsity: the network has no convolution or linear layer to prune")
    return (total - sum(kept for kept, _ in counts)) / total


def sparsity_for(net: nn.Module, compression: float) -> float:
    """The sparsity of the prunable weights that leaves 1 / compression of all parameters.

    Compression is all parameters over those that are not zero, batch norm, biases and logits layer
    included (GAP, Weiss et al. 2022), so what is not prunable has to be made up for by what is.

    Raises:
        Refused: no sparsity reaches this compression; names the largest.
    """
    total = parameter_count(net)
    sizes = [size for _, size in layer_counts(net).values()]
    return 1.0 - keep_fraction(total, sum(sizes), compression, least=len(sizes))


def keep_fraction(total: int, prunable: int, compression: float, least: int = 1) -> float:
    """The share of `prunable` parameters to keep so that total / compression of all are left.

    Args:
        least: at least so many prunable parameters must stay.

    Raises:
        Refused: fewer would be left; names the largest compression.
    """
    kept = round(total / compression) - (total - prunable)
    if kept < least:
        # Rounded down: what is named here must not be refused in turn.
        most = math.floor(10 * total / (total - prunable + least)) / 10
        raise Refused(
            f"--compression {compression:g}: {total - prunable} of {total} parameters cannot be "
            f"pruned; use at most {most:.1f}"
        )
    return kept / prunable


def macs(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass of one image (C, H, W), see `layer_macs`."""
    return sum(layer_macs(net, shape).values())


def layer_macs(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates of every `weighted` layer for one image (C, H, W), by its weight's name.

    Convolutions and linear layers, zeros included, since dense kernels multiply by them too.
    Biases, norms, activations, pooling and attention products are left out. The network's modes
    are left as they were.
    """
    layers = weighted(net)
    total = dict.fromkeys(layers, 0)

    def counter(name: str) -> Callable[..., None]:
        def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            total[name] += output.numel() * _products(layer)

        return count

    hooks = [layer.register_forward_hook(counter(name)) for name, layer in layers.items()]
    training = [module for module in net.modules() if module.training]
    device = next(net.parameters()).device
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return total


def _products(layer: nn.Module) -> int:
    """How many products are summed into one element of the layer's output."""
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return layer.in_channels // layer.groups * height * width
    assert isinstance(layer, nn.Linear)
    return layer.in_features
