"""Sparsity, compression and multiply-accumulates are what counting by hand or by torch gives."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from advprune import models, stats
from advprune.errors import Incompatible, Refused
from advprune.masking import bake, hold
from advprune.masks import kept_count
from advprune.method import Task
from advprune.methods.magnitude import Magnitude
from advprune.models import Architecture
from advprune.objectives import Objective
from advprune.types import Threat


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


# Compression

RESNET20 = (269_722, 267_696)  # all parameters, and those that GAP prunes
VGG_DROP = (14_991_946, 14_977_344)


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        (RESNET20, (0.496216, 0.244324, 0.118378, 0.055405, 0.023918)),
        (VGG_DROP, (0.499513, 0.249269, 0.124147, 0.061586, 0.030306)),
    ],
)
def test_the_shares_to_keep_are_those_of_the_paper_s_networks(
    sizes: tuple[int, int], shares: tuple[float, ...]
) -> None:
    for compression, share in zip((2, 4, 8, 16, 32), shares, strict=True):
        # To the rounding of one parameter, and of the sixth digit.
        got = stats.keep_fraction(*sizes, compression)
        assert got == pytest.approx(share, abs=0.5 / sizes[1] + 1e-6)


def test_a_compression_of_one_keeps_everything() -> None:
    assert stats.keep_fraction(*RESNET20, 1.0) == 1.0
    assert stats.sparsity_for(Toy(), 1.0) == 0.0


def test_a_compression_out_of_reach_is_refused_with_the_largest_there_is() -> None:
    with pytest.raises(
        Refused,
        match=r"^--compression 134: 2026 of 269722 parameters cannot .*; use at most 133\.0$",
    ) as refusal:
        stats.keep_fraction(*RESNET20, 134)
    assert refusal.value.exit_code == 2
    # 269,722 / 2,026 is 133.13: with none of the prunable weights left at all.
    assert stats.keep_fraction(*RESNET20, 133.06) == 1 / RESNET20[1]


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 20))
def test_the_compression_that_a_refusal_names_is_not_refused(
    prunable: int, other: int, least: int
) -> None:
    assume(least <= prunable)
    with pytest.raises(Refused) as refusal:
        stats.keep_fraction(prunable + other, prunable, 1e9, least)
    most = float(str(refusal.value).rpartition(" ")[2])
    assert stats.keep_fraction(prunable + other, prunable, most, least) > 0


@given(st.integers(1, 10**9), st.integers(0, 10**7), st.floats(1, 1e3))
def test_the_sparsity_of_a_compression_leaves_the_count_that_was_meant(
    prunable: int, other: int, compression: float
) -> None:
    meant = round((prunable + other) / compression) - other
    assume(meant >= 1)
    share = stats.keep_fraction(prunable + other, prunable, compression)
    assert kept_count(prunable, 1.0 - share) == meant


@pytest.mark.parametrize("compression", [1.5, 2.0, 4.0, 7.3, 16.0])
def test_a_pruned_network_has_the_compression_that_was_asked(compression: float) -> None:
    architecture = Architecture("digits_resnet", 10, (1, 8, 8), (0.5,), (0.3,))
    net = models.build(architecture)
    with torch.no_grad():
        for parameter in net.parameters():
            # Batch norms and biases start at zero, which would count as pruned.
            parameter.copy_(parameter + 0.01 * (parameter == 0))
    method = Magnitude(sparsity=stats.sparsity_for(net, compression))
    hold(net, method.finish(net, {}, Task(Objective("natural", Threat(0.1)), 0, (1, 8, 8))))
    plain = bake(net, models.build(architecture))
    left = sum(int(parameter.count_nonzero()) for parameter in plain.parameters())
    assert abs(left - stats.parameter_count(plain) / compression) <= 0.5


def test_every_layer_must_keep_a_weight_at_the_largest_compression() -> None:
    # 447 parameters, of which 432 can go; of those three layers keep one each: 447 / 18.
    assert stats.sparsity_for(Toy(), 24.8) == pytest.approx(1 - 3 / 432)
    with pytest.raises(Refused, match=r"15 of 447 parameters .* use at most 24\.8$"):
        stats.sparsity_for(Toy(), 26)
