"""What the tests of methods that survey a network share."""

import numpy as np
import torch
from torch import Tensor, nn
from toy import generator

from advprune.repro import seeded


class Looped(nn.Module):
    """One layer is called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(6):
            self.first = nn.Linear(36, 8)
            self.again = nn.Linear(8, 8)
            self.never = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(x.flatten(1)).relu())
        return self.last(self.again(x.relu()).relu())


def precise(net: nn.Module) -> nn.Module:
    """In eval mode, in float64, with batch norm statistics other than zero and one."""
    net = net.double().eval()
    draw = generator(11)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = (module.num_features,)
            module.running_mean = 0.3 * torch.randn(size, generator=draw).double()
            module.running_var = 0.5 + torch.rand(size, generator=draw).double()
    return net


def close(got: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> bool:
    """Equal up to a share of the largest value of each: single values may nearly vanish."""
    assert got.keys() == expected.keys()
    pairs = [(got[name], expected[name]) for name in got]
    assert all(a.shape == b.shape for a, b in pairs)
    return all(float((a - b).abs().max()) <= relative * float(b.abs().max()) for a, b in pairs)


def prefixed(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the state that a survey leaves."""
    return {f"scores/{name}": value for name, value in scores.items()}


def joined(tensors: dict[str, Tensor], names: list[str]) -> np.ndarray:
    return np.concatenate([tensors[name].flatten().numpy() for name in names])


def largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """The mask of the `keep` largest, by a full stable sort."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores, axis=None, kind="stable")[:keep]] = True
    return mask
