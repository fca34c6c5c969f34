"""How much two views of the same images depend on each other, and what a bottleneck makes of it.

With K and L the centred kernel matrices of the two views of N images, one row and column for each,
the normalised Hilbert-Schmidt independence criterion (Fukumizu et al. 2007) is

    nHSIC = trace(R_K R_L),    R_K = K (K + e N I)^-1,    e = 1e-5

Kernels of images and activations are Gaussian, with 5 deviations for each dimension; that of labels
is linear. The bottleneck (Wang et al. 2021) makes hidden activations forget the images and keep the
labels.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from advprune.rank_rows import joined
from advprune.types import Images, Labels

SIGMA = 5.0
RIDGE = 1e-5


def bottleneck(
    hidden: Iterable[Tensor], images: Images, labels: Labels, classes: int, x: float, y: float
) -> Tensor:
    """Sum over `hidden` of x nHSIC(images, it) - y nHSIC(labels, it), over the rows of all ranks.

    Args:
        hidden: (N, ...) each, of any float type.
        x, y: the weights.
    """
    of_labels = linear(F.one_hot(joined(labels), classes).float())
    # The trace is linear: both terms of a layer are one product.
    wanted = x * smoother(gaussian(joined(images))) - y * smoother(of_labels)
    terms = [trace_of_product(smoother(gaussian(joined(each))), wanted) for each in hidden]
    return torch.stack(terms).sum()


def nhsic(kernel: Tensor, other: Tensor) -> Tensor:
    """The criterion of two kernel matrices (N, N)."""
    return trace_of_product(smoother(kernel), smoother(other))


def gaussian(values: Tensor) -> Tensor:
    """exp(-|v_i - v_j|^2 / (2 sigma^2 d)) of (N, ...) with d values for each; float32."""
    flat = values.flatten(1).float()
    # Distances do not change with the origin, but the squares that cancel in them do.
    flat = (flat - flat.mean(dim=0)) / (2.0 * SIGMA**2 * flat.shape[1]) ** 0.5
    squares = flat.square().sum(dim=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * flat @ flat.T
    return torch.exp(-distances.clamp_min(0.0))


def linear(values: Tensor) -> Tensor:
    """v_i . v_j of (N, d)."""
    return values @ values.T


def smoother(kernel: Tensor) -> Tensor:
    """R = K (K + e N I)^-1 of the centred kernel, as I - e N (K + e N I)^-1."""
    count = len(kernel)
    centred = kernel - kernel.mean(dim=0) - kernel.mean(dim=1)[:, None] + kernel.mean()
    one = torch.eye(count, dtype=kernel.dtype, device=kernel.device)
    ridge = RIDGE * count
    # Without a look at the outcome, which would stop a GPU: what is not finite stays so.
    return one - ridge * torch.linalg.inv_ex(centred + ridge * one).inverse


def trace_of_product(first: Tensor, second: Tensor) -> Tensor:
    return (first * second.T).sum()
