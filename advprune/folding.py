"""A network as evaluation asks it thousands of times: batch norm folded away, channels last."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from advprune.frozen import frozen
from advprune.types import Images, Logits

# What folding may cost by rounding: of the largest logit, of the length of all gradients.
_SAME, _SAME_SLOPE = 1e-4, 1e-3


def folded(net: nn.Module, images: Images) -> nn.Module:
    """A copy of `net` for evaluation that answers the same sooner.

    In eval mode, without parameters that learn, each batch norm folded into the convolution before
    it, kernels in channels-last order. A network that cannot be traced, or that has other logits or
    other gradients once folded, is copied as it is: tracing forgets a backward of one's own.

    Args:
        net: left as it was.
        images: float32 (N, C, H, W), N at least 1, on which both are compared.
    """
    plain = deepcopy(net).eval().requires_grad_(False)
    try:
        copy = fuse(plain)
    # Any network may refuse to be traced, each in its own way; then it stays as it is.
    except Exception:
        return plain
    copy = copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore
    with frozen(plain):
        expected, got = (_probe(one, images) for one in (plain, copy))
    if expected is None or got is None:
        return plain
    near = (got[0] - expected[0]).abs().max() <= _SAME * expected[0].abs().max().clamp_min(1.0)
    alike = (got[1] - expected[1]).norm() <= _SAME_SLOPE * expected[1].norm()
    return copy if bool(near & alike) else plain


def _probe(net: nn.Module, images: Images) -> tuple[Logits, Tensor] | None:
    """Logits, and the gradient of their squares; None for a network that has none."""
    with torch.enable_grad():
        x = images.detach().requires_grad_(True)
        logits = net(x)
        if not logits.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient
