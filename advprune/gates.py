"""Gates that let a channel through at random, and learn how often (Lee et al. 2018).

A gate is on with probability pi, which is itself uncertain: its prior is Beta(alpha, 1), which
nearly always says off, and its posterior a Kumaraswamy distribution, which can be sampled in closed
form (Nalisnick and Smyth 2017). With u and u' uniform over (0, 1):

    a = softplus(max(a_uc, -10)),  b = softplus(clip(b_uc, -10, 50))
    pi = (1 - u^(1/b))^(1/a)                            one for each channel
    z = sigmoid((logit u' + logit pi) / 0.1)            one for each image and channel
    E[pi] = b B(1 + 1/a, b)
    KL = (1 - alpha/a) (-gamma - psi(b) - 1/b) + ln(a b / alpha) - (b - 1)/b

After training a gate is no longer random: it multiplies by E[pi], or by zero where that is small.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune import whole_batch

PRIOR = 1e-4  # alpha
THRESHOLD = 1e-3  # of E[pi]; below it a gate is shut
TEMPERATURE = 0.1
_EULER = 0.5772156649015329
_EDGE = 1e-6  # uniform numbers keep this far from 0 and 1, where logits are infinite
_B_UC = 0.5413  # b = 1, to four digits


def kumaraswamy(a_uc: Tensor, b_uc: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), float64: of a small a, lgamma(1 / a) has no digits left in float32."""
    a = F.softplus(a_uc.double().clamp_min(-10.0))
    return a, F.softplus(b_uc.double().clamp(-10.0, 50.0))


def expectation(a: Tensor, b: Tensor) -> Tensor:
    """E[pi], in (0, 1)."""
    shifted = 1.0 + 1.0 / a
    return torch.exp(b.log() + shifted.lgamma() + b.lgamma() - (shifted + b).lgamma())


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL from the prior to the posterior of each gate, in nats; zero at a = alpha, b = 1."""
    spread = -_EULER - b.digamma() - 1.0 / b
    return (1.0 - PRIOR / a) * spread + torch.log(a * b / PRIOR) - (b - 1.0) / b


def log_odds(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """logit of pi at u, finite for u in [1e-6, 1 - 1e-6]."""
    log_pi = torch.log(-torch.expm1(u.log() / b)) / a
    log_pi = log_pi.clamp_max(-_EDGE)  # pi rounds to one where b is small
    return log_pi - torch.log(-torch.expm1(log_pi))


class Gates(nn.Module):
    """The gates of all channel groups of a network, side by side.

    Args:
        widths: gates of each group, by its name.
        start: a_uc of all of them at first; b is one, so that E[pi] = a / (a + 1).
    """

    settled: Tensor

    def __init__(self, widths: Mapping[str, int], start: float) -> None:
        super().__init__()
        count = sum(widths.values())
        self.widths = dict(widths)
        self.a_uc = nn.Parameter(torch.full((count,), start))
        self.b_uc = nn.Parameter(torch.full((count,), _B_UC))
        self.register_buffer("settled", torch.empty(count))
        self._drawn: Tensor | None = None
        self.refresh()

    def posterior(self) -> tuple[Tensor, Tensor]:
        return kumaraswamy(self.a_uc, self.b_uc)

    def expected(self) -> Tensor:
        """E[pi] of each gate, float32 (G,)."""
        return expectation(*self.posterior()).float()

    def divergence(self) -> Tensor:
        """KL of all gates together, a float64 scalar."""
        return divergence(*self.posterior()).sum()

    @torch.no_grad()
    def refresh(self) -> None:
        """Settle the gates anew; after each optimiser step."""
        expected = self.expected()
        self.settled.copy_(expected * (expected > THRESHOLD))

    @contextmanager
    def drawn(self, images: int) -> Iterator[None]:
        """Random gates where in training mode: one draw, the same in every forward inside."""
        a, b = self.posterior()
        odds = log_odds(a, b, _uniform(len(a), like=a)).float()
        noise = whole_batch.drawn(lambda count: _uniform(count, len(a), like=odds), images).logit()
        self._drawn = torch.sigmoid((noise + odds) / TEMPERATURE)
        try:
            yield
        finally:
            self._drawn = None

    def forward(self) -> Tensor:
        """What to multiply channels by: (images, G) as drawn, or (1, G) that is not random."""
        if self.training and self._drawn is not None:
            return self._drawn
        return self.settled[None]

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Values (G,) of all gates, by the name of the group."""
        return dict(zip(self.widths, values.split(list(self.widths.values())), strict=True))


def _uniform(*shape: int, like: Tensor) -> Tensor:
    """In [1e-6, 1 - 1e-6], of torch's global generator, as dropout draws."""
    return torch.rand(*shape, dtype=like.dtype, device=like.device).clamp(_EDGE, 1.0 - _EDGE)
