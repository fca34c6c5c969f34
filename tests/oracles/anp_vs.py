"""ANP-VS: its distributions by quadrature and sampling, its step with the gates written out."""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from scipy import integrate, special
from torch import Tensor, nn


def expectation(a: float, b: float) -> float:
    """E[pi] for pi = (1 - u^(1/b))^(1/a), by quadrature over u."""
    value, _ = integrate.quad(lambda u: (1 - u ** (1 / b)) ** (1 / a), 0, 1, limit=200)
    return float(value)


def divergence(a: float, b: float, alpha: float) -> float:
    """E_q[ln q(pi) - ln p(pi)], the prior being Beta(alpha, 1), by quadrature over u."""

    def gap(u: float) -> float:
        log_pi = np.log1p(-(u ** (1 / b))) / a
        log_q = np.log(a * b) + (a - 1) * log_pi + (b - 1) * np.log(u) / b
        log_p = np.log(alpha) + (alpha - 1) * log_pi
        return float(log_q - log_p)

    value, _ = integrate.quad(gap, 0, 1, limit=200)
    return float(value)


def samples(a: float, b: float, channels: int, images: int, seed: int) -> np.ndarray:
    """Gates z (images, channels), at temperature 0.1."""
    draw = np.random.default_rng(seed)
    pi = (1 - draw.random(channels) ** (1 / b)) ** (1 / a)
    return special.expit((special.logit(draw.random((images, channels))) + special.logit(pi)) / 0.1)


def forward(net: nn.Module, x: Tensor, z: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The network of `toy` with a gate behind each ReLU; (logits, what the layers behind read)."""
    layers: dict[str, nn.Module] = OrderedDict(net.get_submodule("network").named_children())
    latents = []
    x = net.get_submodule("normalize")(x)
    x = layers["relu1"](layers["bn1"](layers["conv1"](x))) * z[0][:, :, None, None]
    latents.append(x)
    x = layers["relu2"](layers["bn2"](layers["conv2"](x))) * z[1][:, :, None, None]
    x = layers["dropout"](x)
    latents.append(x)
    x = layers["relu3"](layers["conv3"](x)) * z[2][:, :, None, None]
    x = x.mean(dim=(2, 3))
    latents.append(x)
    return layers["fc"](x), latents


def gates(a_uc: Tensor, b_uc: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """z (N, G) at the uniform numbers u (G,) and v (N, G), with gradients for a_uc and b_uc."""
    a, b = F.softplus(a_uc.double()), F.softplus(b_uc.double())
    pi = (1 - u ** (1 / b)) ** (1 / a)
    return torch.sigmoid((torch.logit(v.double()) + torch.logit(pi)) / 0.1).float()


def losses(
    net: nn.Module,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    z: list[Tensor],
    suppression: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """CE(x_adv), and (CE(x) + 2 CE(x_adv)) / 3 + lambda VS; dropout of both by the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        logits, latents = forward(net, clean, z)
        torch.manual_seed(seed)
        attacked, moved = forward(net, adversarial, z)
    robust = F.cross_entropy(attacked, labels)
    gaps = [torch.mean(torch.abs(p - q)) for p, q in zip(latents, moved, strict=True)]
    mixed = (F.cross_entropy(logits, labels) + 2 * robust) / 3
    return robust, mixed + suppression * sum(gaps) / 3
