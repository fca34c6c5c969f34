"""Which batch norm belongs to which layer: the one that reads its output as it comes out.

Found by watching one forward, not by tracing: a norm belongs to a layer where it is given the very
tensor that the layer returned. Behind an addition, as in networks that normalise first, it belongs
to none.
"""

import torch
from torch import Tensor, nn

from advprune.frozen import same_modes
from advprune.models import weighted

_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def norms_of(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, nn.Module]:
    """The batch norm of each layer that has one, by the name of the layer's weight.

    Args:
        net: left as it is.
        shape: (C, H, W) of one image.
    """
    made: list[tuple[Tensor, str]] = []
    found: dict[str, nn.Module] = {}

    def record(name: str):
        return lambda layer, inputs, output: made.append((output, name))

    def match(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.update({name: norm for output, name in made if output is inputs[0]})

    handles = [layer.register_forward_hook(record(name)) for name, layer in weighted(net).items()]
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    handles += [norm.register_forward_pre_hook(match) for norm in norms]
    try:
        with same_modes(net):
            net.eval()(torch.zeros(1, *shape, device=next(net.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def scaling(norm: nn.Module | None, width: int) -> Tensor:
    """|gamma| of each channel, (width,); ones without a batch norm that scales."""
    if not isinstance(norm, _BatchNorm) or norm.weight is None:
        return torch.ones(width)
    return norm.weight.detach().abs()
