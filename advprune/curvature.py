"""First and second-order terms of a loss in the weights of a layer, without forming any matrix.

Kronecker factors for convolutions (Grosse and Martens 2016) of a batch of B images, S output
positions, inputs a (unfolded, d = I kh kw) and gradients g of the mean loss at the outputs:

    A = 1 / (B S^2) sum_{b,t} a a^T        G = B S sum_{b,t} g g^T

A linear layer is the case S = 1. Neither is built: with R = conv(a, D), the product D A is the
gradient that R at the outputs gives the weight, divided by B S^2. That is right for any stride,
padding, dilation and number of groups, and takes O(O d) memory instead of O(d^2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from advprune.pointwise import unstrided

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
    products = _times_inputs(layer, a.detach(), change.detach(), bias_change)  # D A, times B S^2
    channels = 1 if isinstance(layer, nn.Conv2d) else g.dim() - 1
    over = [axis for axis in range(g.dim()) if axis != channels]
    positions = g.numel() // (g.shape[0] * g.shape[channels])  # S
    # B S sum g^2, times 1 / (B S^2): the batch size cancels.
    scale = 0.5 * g.square().sum(dim=over) / positions
    rows = scale.reshape(-1, *[1] * (change.dim() - 1))
    bias_terms = None if bias_change is None else scale * bias_change * products[1]
    return rows * change * products[0], bias_terms


def _times_inputs(
    layer: Layer, a: Tensor, change: Tensor, bias_change: Tensor | None
) -> tuple[Tensor, Tensor]:
    """R a^T and the sum of R over images and positions, of R the layer's response to the change."""
    if not isinstance(layer, nn.Conv2d):
        response = F.linear(a, change, bias_change).flatten(0, -2)
        return response.T @ a.flatten(0, -2), response.sum(dim=0)
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        a, padding = F.pad(a, layer._reversed_padding_repeated_twice, mode), (0, 0)
    rows, columns = change.shape[2:]
    sides = (padding[0], padding[1])
    a, stride = unstrided(a, (rows, columns), (layer.stride[0], layer.stride[1]), sides)
    # Both are convolutions that read their inputs along the channels.
    a = a.contiguous(memory_format=torch.channels_last)
    change = change.contiguous(memory_format=torch.channels_last)
    settings = (stride, padding, layer.dilation, layer.groups)
    response = F.conv2d(a, change, bias_change, *settings)
    weights = conv2d_weight(a, change.shape, response, *settings)  # pyright: ignore
    return weights, response.sum(dim=(0, 2, 3))
