"""First and second-order terms of a loss in the weights of a layer, without forming any matrix.

Kronecker factors for convolutions (Grosse and Martens 2016) of a batch of B images, S output
positions, inputs a (unfolded, d = I kh kw) and gradients g of the mean loss at the outputs:

    A = 1 / (B S^2) sum_{b,t} a a^T        G = B S sum_{b,t} g g^T

A linear layer is the case S = 1. Neither is built: with R = conv(a, D), the product D A is the
weight gradient of |R|^2 / 2, divided by B S^2. That is right for any stride, padding, dilation and
number of groups, and takes O(O d) memory instead of O(d^2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def weight_gradients(loss: Tensor, layers: dict[str, Layer]) -> dict[str, Tensor]:
    """The gradient of a loss in each weight; zeros for a layer that the forward never called."""
    weights = [layer.weight for layer in layers.values()]
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    return dict(zip(layers, gradients, strict=True))


@dataclass
class Record:
    """What passed through a layer in one forward: an entry per call, several where it is shared."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded(layers: dict[str, Layer]) -> Iterator[dict[str, Record]]:
    """Keep inputs (detached) and outputs (in the graph) of these layers for the duration."""
    records = {name: Record() for name in layers}

    def hook(name: str):
        def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            records[name].inputs.append(inputs[0].detach())
            records[name].outputs.append(output)
            # An in-place ReLU that follows must not turn what is kept into its own output.
            return output.clone()

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def row_quadratic(
    layer: Layer, a: Tensor, g: Tensor, change: Tensor, bias_change: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """1/2 G_ii D_ij (D A)_ij: the quadratic change of the loss, shared out among the weights.

    Rows of D are output channels, a column for the bias included. The sum over j is
    1/2 G_ii D_i A D_i^T >= 0; single terms may be negative.

    Args:
        a: inputs of the layer, (B, I, H, W) or (B, ..., I).
        g: gradients of the mean loss at its outputs, (B, O, H', W') or (B, ..., O).
        change: D without the bias, the shape of the weight.
        bias_change: the bias's column of D, (O,); None for a layer without bias.

    Returns:
        The terms of the weights, in their shape, and those of the biases or None.
    """
    with torch.enable_grad():
        wanted = [change.detach().requires_grad_(True)]
        if bias_change is not None:
            wanted.append(bias_change.detach().requires_grad_(True))
        response = _apply(layer, a.detach(), wanted[0], wanted[1] if len(wanted) > 1 else None)
        products = torch.autograd.grad(0.5 * response.square().sum(), wanted)  # D A, times B S^2
    channels = 1 if isinstance(layer, nn.Conv2d) else g.dim() - 1
    over = [axis for axis in range(g.dim()) if axis != channels]
    positions = g.numel() // (g.shape[0] * g.shape[channels])  # S
    # B S sum g^2, times 1 / (B S^2): the batch size cancels.
    scale = 0.5 * g.square().sum(dim=over) / positions
    rows = scale.reshape(-1, *[1] * (change.dim() - 1))
    bias_terms = None if bias_change is None else scale * bias_change * products[1]
    return rows * change * products[0], bias_terms


def _apply(layer: Layer, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        # Knows the layer's padding mode as well.
        return layer._conv_forward(a, weight, bias)
    return F.linear(a, weight, bias)
