"""R-ADMM's projection in numpy, and its penalty with U as the released code leaves it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The axes of (O, I, kh, kw) that a unit spans.
SPANS = {"weight": (), "column": (0,)}


def project(weight: np.ndarray, granularity: str, keep: int) -> np.ndarray:
    """Zero all units but the `keep` of largest L2 norm; of equal ones the first are kept."""
    axes = tuple(axis for axis in SPANS[granularity] if axis < weight.ndim)
    norms = np.sqrt((weight.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    if granularity == "weight":
        norms = np.abs(weight)
    order = np.argsort(-norms, axis=None, kind="stable")
    kept = np.zeros(norms.size, dtype=bool)
    kept[order[:keep]] = True
    return np.where(kept.reshape(norms.shape), weight, 0)


def released_projection(weight: np.ndarray, sparsity: float) -> np.ndarray:
    """Single weights as released: what lies below a percentile of |w| becomes zero."""
    threshold = np.percentile(np.abs(weight), 100 * sparsity)
    return np.where(np.abs(weight) < threshold, 0, weight)


def penalty_gradients(
    weights: Sequence[Tensor], projected: Sequence[Tensor], rho: float, detached: bool
) -> list[Tensor]:
    """The gradient of rho/2 |W - Z + U|^2 before any update and after each one.

    Args:
        weights: W where each gradient is asked for, which is also where the next update finds it.
        projected: Z at the start, and after each update.
        detached: whether U is a constant; in the released code, U <- U + W - Z keeps its graph.
    """
    w = weights[0].clone().requires_grad_()
    u = torch.zeros_like(w)
    gradients = []
    for m, z in enumerate(projected):
        if m:
            u = u + w - z
        if detached:
            u = u.detach()
        w.data.copy_(weights[m])
        (gradient,) = torch.autograd.grad(
            rho / 2 * torch.sum((w - z + u) ** 2), w, retain_graph=True
        )
        gradients.append(gradient)
    return gradients
