"""A network as attacks and measurements want it: a fixed function of its input, and cheap.

An attack calls the same network dozens of times between two changes of its weights. So what is
constant in between is computed once: masked weights, and batch norm in eval mode, which is then one
multiply-add per value instead of a normalisation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.types import Classifier


class OfWeights(nn.Module):
    """A module whose forward takes nothing: what it gives changes with its weights alone."""


@contextmanager
def frozen(net: Classifier) -> Iterator[None]:
    """Fix `net` for the duration, and put everything back afterwards, also after an exception.

    Inside, every submodule is in eval mode, no parameter requires a gradient, and parametrised
    weights, batch norms and modules `OfWeights` are evaluated once, at the entry: weights must not
    change inside.
    May be nested. A callable that is not a module passes through untouched.

    `torch.nn.utils.parametrize.cached` would cache every network of the process, also one that
    trains meanwhile; here the cache belongs to `net` alone.
    """
    if not isinstance(net, nn.Module):
        yield
        return
    modules = list(net.modules())
    training = [module for module in modules if module.training]
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    pinned: list[nn.Module] = []
    try:
        for module in training:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.no_grad():
            for module in modules:
                # A forward of its own means that an outer `frozen` has pinned it already.
                if "forward" not in vars(module) and (constant := _constant(module)):
                    module.forward = constant
                    pinned.append(module)
        yield
    finally:
        for module in pinned:
            del module.forward
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _constant(module: nn.Module) -> Callable[..., Any] | None:
    """A forward that gives what the module gives while nothing changes; None: keep its own."""
    if isinstance(module, parametrize.ParametrizationList | OfWeights):
        value = module()
        return lambda: value
    if type(module) is nn.BatchNorm2d and module.running_var is not None:
        return _affine(module)
    return None


def _affine(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    scale, shift = affine_of(norm)
    # The sums of a layer in half precision would come back in single.
    return lambda x: torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Batch norm with running statistics as x * scale + shift, both (C, 1, 1)."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.affine:
        shift = shift + norm.bias
    return scale[:, None, None], shift[:, None, None]


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Training mode for the duration: batch norm by the batch, dropout alive; then all is undone.

    The modes come back, and so do the running statistics that training mode moves.
    """
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with same_modes(net):
        net.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])


@contextmanager
def same_modes(net: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every submodule is in its own mode again afterwards."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
