"""Sparsity and multiply-accumulates are what counting by hand and by torch's own counter gives."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from advprune import models, stats
from advprune.errors import Incompatible
from advprune.models import Architecture


class Toy(nn.Module):
    """1x8x8 -> a grouped and a strided convolution -> 3 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.linear = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.grouped(self.bn(self.conv(x))).flatten(1))


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_parameters_by_hand() -> None:
    # conv 36 + 4, norm 4 + 4, grouped 6 x 2 x 9, linear 96 x 3 + 3
    assert stats.parameter_count(Toy()) == 40 + 8 + 108 + 291


def test_macs_by_hand() -> None:
    # conv: 64 places x 4 filters x 9; grouped: 16 places x 6 filters x 2 inputs x 9; linear 96 x 3
    assert stats.macs(Toy(), (1, 8, 8)) == 64 * 4 * 9 + 16 * 6 * 18 + 288


@pytest.mark.parametrize("name", ["digits_resnet", "resnet20", "mobilenet_v2"])
def test_macs_are_half_the_flops_that_torch_counts(name: str) -> None:
    net = models.build(Architecture(name, 10, (3, 32, 32), (0.5,) * 3, (0.2,) * 3))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32))
    assert 2 * stats.macs(net, (3, 32, 32)) == counter.get_total_flops()


def test_counting_macs_leaves_no_trace() -> None:
    net = Toy().train()
    net.bn.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    stats.macs(net, (1, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())
    assert net.training
    assert net.conv.training
    assert not net.bn.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_hooks_are_removed_after_a_failure() -> None:
    net = Toy().train()
    with pytest.raises(RuntimeError, match="channels"):
        stats.macs(net, (3, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())
    assert all(module.training for module in net.modules())


def test_kept_weights_are_the_non_zeros() -> None:
    net = Toy()
    with torch.no_grad():
        net.conv.weight[:3] = 0
        net.linear.weight[:, ::2] = 0
        net.linear.weight[0, 1] = -0.0
    counts = stats.layer_counts(net)
    assert counts == {
        "conv.weight": (9, 36),
        "grouped.weight": (108, 108),
        "linear.weight": (143, 288),
    }
    arrays = [m.weight.detach().numpy() for m in (net.conv, net.grouped, net.linear)]
    zeros = sum(int((a == 0).sum()) for a in arrays)
    assert stats.realised_sparsity(net) == pytest.approx(
        zeros / np.concatenate([a.ravel() for a in arrays]).size
    )


def test_effective_weights_count_and_not_the_ones_behind_a_mask() -> None:
    net = Toy()
    assert stats.realised_sparsity(net) == 0.0
    mask = torch.zeros(3, 96, dtype=torch.bool)
    mask[1, :5] = True
    parametrize.register_parametrization(net.linear, "weight", Mask(mask))
    assert stats.layer_counts(net)["linear.weight"] == (5, 288)
    assert stats.realised_sparsity(net) == 283 / (36 + 108 + 288)
    assert stats.macs(net, (1, 8, 8)) == stats.macs(Toy(), (1, 8, 8))


def test_a_network_with_nothing_to_prune_has_no_sparsity() -> None:
    with pytest.raises(Incompatible, match="no convolution or linear layer"):
        stats.realised_sparsity(nn.Sequential(nn.ReLU()))
