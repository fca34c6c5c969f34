"""MAD's scores as its authors compute them (Lee et al. 2022): explicit factors, row by row.

With B images, S output positions, unfolded inputs a (a column of ones for the bias) and gradients g
of the mean loss at the outputs,

    A = 1 / (B S^2) sum a a^T        G = B S sum g g^T        S_i = 1/2 dW_i * (dW_i (G_ii A))

where each row i builds its own block G_ii A of the Hessian.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.types import Images, Labels


def factors(layer: nn.Conv2d | nn.Linear, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """A (d, d) and G (O, O) of one layer without groups.

    Args:
        a: inputs, (B, I, H, W) or (B, I).
        g: gradients at the outputs, (B, O, H', W') or (B, O).
    """
    if isinstance(layer, nn.Conv2d):
        columns = F.unfold(a, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)
        rows, gradients = columns.transpose(1, 2), g.flatten(2).transpose(1, 2)
    else:
        rows, gradients = a[:, None], g[:, None]
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
    batch, positions = rows.shape[:2]
    rows, gradients = rows.flatten(0, 1), gradients.flatten(0, 1)
    first = rows.T @ rows / (batch * positions**2)
    return first, batch * positions * gradients.T @ gradients


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    assert not isinstance(layer.padding, str)
    return layer.padding


def row_by_row(first: Tensor, second: Tensor, change: Tensor) -> Tensor:
    """S for A (d, d), G (O, O) and dW (O, d)."""
    scores = torch.empty_like(change)
    for row in range(len(change)):
        block = second[row, row] * first
        scores[row] = 0.5 * change[row] * (change[row] @ block)
    return scores


def layer_saliency(
    layer: nn.Conv2d | nn.Linear, a: Tensor, g: Tensor, change: Tensor, bias_change: Tensor | None
) -> Tensor:
    """S of the weights of one layer, in their shape; those of the biases are left out."""
    rows = change.flatten(1)
    if bias_change is not None:
        rows = torch.cat([rows, bias_change[:, None]], dim=1)
    scores = row_by_row(*factors(layer, a, g), rows)
    return scores[:, : change[0].numel()].reshape(change.shape)


def saliency(
    net: nn.Module, changes: Mapping[str, Tensor], images: Images, labels: Labels
) -> dict[str, Tensor]:
    """S of every weight, by its name, for removing `changes` of weights and biases, in eval mode.

    Args:
        net: with the masked weights in place; each layer is called once.
        changes: by the names of the parameters of the layers.
    """
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[module], outputs[module] = given[0].detach(), output
        output.retain_grad()

    hooks = [layer.register_forward_hook(keep) for layer in layers.values()]
    net.eval()
    F.cross_entropy(net(images), labels).backward()
    for hook in hooks:
        hook.remove()
    scores = {}
    for name, layer in layers.items():
        gradient = outputs[layer].grad
        assert gradient is not None
        weight, bias = f"{name}.weight", f"{name}.bias"
        scores[weight] = layer_saliency(
            layer, inputs[layer], gradient, changes[weight], changes.get(bias)
        )
    return scores
