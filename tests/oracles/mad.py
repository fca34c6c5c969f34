"""MAD as its released code computes it: factors as matrices, one output channel after another."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def layers_of(net: nn.Module) -> dict[str, Layer]:
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def attack(
    net: nn.Module, x: Tensor, start: Tensor, y: Tensor, eps: float, size: float, steps: int
) -> Tensor:
    """PGD in the box [0, 1] from `start`; `net` is in eval mode."""
    candidate = start.detach().clone()
    for _ in range(steps):
        candidate.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(candidate), y), candidate)
        moved = candidate.detach() + size * gradient.sign()
        candidate = torch.clamp(torch.max(torch.min(moved, x + eps), x - eps), 0.0, 1.0)
    return candidate


def scores(net: nn.Module, x: Tensor, y: Tensor, delta: str = "masked") -> dict[str, Tensor]:
    """S of every convolution and linear layer at adversarial images, by the name of its weight."""
    masked = copy.deepcopy(net).eval()
    if delta == "masked":
        for name, factor in soft_masks(net, x, y).items():
            masked.get_parameter(name).data.mul_(factor)
    calls = _gradients_at_outputs(masked, x, y)
    result = {}
    for name, layer in layers_of(net).items():
        change, bias_change = layer.weight.detach().clone(), None
        if layer.bias is not None:
            bias_change = layer.bias.detach().clone()
        if delta == "masked":
            change -= masked.get_parameter(f"{name}.weight").detach()
            if bias_change is not None:
                bias_change -= masked.get_parameter(f"{name}.bias").detach()
        total = torch.zeros_like(change)
        for a, g in calls[name]:
            total += quadratic(layer, a, g, change, bias_change)[0]
        result[f"{name}.weight"] = total
    return result


def soft_masks(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """f(M) of each weight and bias after 20 steps of Adam, with the chain rule and Adam by hand."""
    names = [f"{n}.{p}" for n, m in layers_of(net).items() for p, _ in m.named_parameters()]
    fresh = {name: net.get_parameter(name).detach().clone() for name in names}
    upper, lower = math.log(math.e - 1), math.log(math.exp(1e-4) - 1)
    mask = {name: torch.full_like(fresh[name], upper) for name in names}
    first = {name: torch.zeros_like(fresh[name]) for name in names}
    second = {name: torch.zeros_like(fresh[name]) for name in names}
    for t in range(1, 21):
        masked = copy.deepcopy(net).eval()
        for name in names:
            masked.get_parameter(name).data = fresh[name] * torch.log(1 + torch.exp(mask[name]))
        F.cross_entropy(masked(x), y).backward()
        for name in names:
            gradient = masked.get_parameter(name).grad
            if gradient is None:  # the layer is never called
                continue
            gradient = gradient * fresh[name] * torch.sigmoid(mask[name])
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean, square = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
            mask[name] = mask[name] - 0.1 * mean / (torch.sqrt(square) + 1e-8)
            mask[name] = torch.clamp(mask[name], lower, upper)
    return {name: torch.log(1 + torch.exp(mask[name])) for name in names}


def quadratic(
    layer: Layer, a: Tensor, g: Tensor, change: Tensor, bias_change: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """S = 1/2 dW_ij (H_i dW_i)_j with H_i = G_ii A, for the weights and for the biases."""
    changed = change.flatten(1)
    if bias_change is not None:
        changed = torch.cat([changed, bias_change[:, None]], dim=1)
    result = torch.zeros_like(changed)
    per_group = layer.weight.shape[0] // _groups(layer)
    for i in range(layer.weight.shape[0]):
        inputs = unfolded(layer, a, i // per_group, bias_change is not None)
        a_factor, g_factor = factors(inputs, gradient_rows(layer, g), images=len(a))
        hessian = g_factor[i, i] * a_factor
        product = hessian @ changed[i]
        for j in range(changed.shape[1]):
            result[i, j] = 0.5 * changed[i, j] * product[j]
    weights = result[:, : change[0].numel()].reshape(change.shape)
    return weights, None if bias_change is None else result[:, -1]


def factors(inputs: Tensor, gradients: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """A = 1/(B S^2) sum a a^T, G = B S sum g g^T; rows are (image, position)."""
    positions = len(inputs) // images
    a_factor = sum(torch.outer(row, row) for row in inputs) / (images * positions**2)
    g_factor = sum(torch.outer(row, row) for row in gradients) * (images * positions)
    assert isinstance(a_factor, Tensor)
    assert isinstance(g_factor, Tensor)
    return a_factor, g_factor


def unfolded(layer: Layer, a: Tensor, group: int, bias: bool) -> Tensor:
    """What each output position of this group sees, a row each; a one at the end for the bias."""
    if isinstance(layer, nn.Conv2d):
        part = a.chunk(layer.groups, dim=1)[group]
        size, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
        assert not isinstance(layer.padding, str)
        patches = F.unfold(part, size, dilation, layer.padding, stride)  # pyright: ignore
        rows = patches.transpose(1, 2).flatten(0, 1)
    else:
        rows = a.flatten(0, -2)
    if bias:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    return rows


def gradient_rows(layer: Layer, g: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return g.permute(0, 2, 3, 1).flatten(0, 2)
    return g.flatten(0, -2)


def _groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _gradients_at_outputs(
    net: nn.Module, x: Tensor, y: Tensor
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """(input, gradient of the mean cross-entropy at the output) of every call of every layer.

    The gradients come in through a zero that is added to the output.
    """
    inputs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers_of(net)}

    def hook(name: str):
        def add_zero(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            zero = torch.zeros_like(output).requires_grad_()
            inputs[name].append((given[0].detach().clone(), zero))
            return output + zero

        return add_zero

    for name, layer in layers_of(net).items():
        layer.register_forward_hook(hook(name))
    F.cross_entropy(net(x), y).backward()
    found = {}
    for name, calls in inputs.items():
        found[name] = [(a, zero.grad) for a, zero in calls]
    return found
