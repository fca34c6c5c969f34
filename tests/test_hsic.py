"""nHSIC says how much two views depend on each other; taps read the views off the network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import hsic as oracle
from toy import generator, make_batch, make_net

from advprune import hsic, taps
from advprune.models import weighted

# Criterion ---------------------------------------------------------------------------------------


def values(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=generator(seed))


@pytest.mark.parametrize("shape", [(3,), (4, 5, 5), (64, 16, 16)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_the_gaussian_kernel_is_that_of_the_definition(shape: tuple, scale: float) -> None:
    found = hsic.gaussian(scale * values(12, *shape) + 3.0)
    expected = oracle.gaussian(scale * values(12, *shape).double().numpy() + 3.0)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=2e-6)
    assert (found.diagonal() > 1 - 1e-5).all()


@pytest.mark.parametrize("count", [2, 12, 100])
def test_it_is_that_of_the_definition(count: int) -> None:
    first, second = values(count, 4, 5, 5), values(count, 7, seed=1)
    mixed = second + 2.0 * first.flatten(1)[:, :7]
    labels = torch.arange(count) % 5
    for other in (second, mixed):
        found = hsic.nhsic(hsic.gaussian(first), hsic.gaussian(other))
        kernels = oracle.gaussian(first.numpy()), oracle.gaussian(other.numpy())
        assert float(found) == pytest.approx(oracle.nhsic(*kernels), rel=5e-3)
    exact = hsic.nhsic(hsic.gaussian(first).double(), hsic.linear(F.one_hot(labels, 5).double()))
    expected = oracle.nhsic(oracle.gaussian(first.numpy()), oracle.of_labels(labels.numpy()))
    assert float(exact) == pytest.approx(expected, rel=5e-3)


def test_it_tells_dependence_from_independence() -> None:
    labels = F.one_hot(torch.arange(120) % 3, 3).float()
    telling = labels + 0.01 * values(120, 3)
    kernel = hsic.linear(labels)
    told = float(hsic.nhsic(hsic.gaussian(telling), kernel))
    untold = float(hsic.nhsic(hsic.gaussian(values(120, 3, seed=2)), kernel))
    assert told > 1.8 > 0.5 > untold >= 0
    # Of a view with itself it is the number of directions that it has.
    assert float(hsic.nhsic(kernel, kernel)) == pytest.approx(2.0, abs=0.01)


def test_the_order_of_the_images_does_not_matter_and_one_alone_says_nothing() -> None:
    first, second = values(20, 6), values(20, 3, seed=1)
    order = torch.randperm(20, generator=generator(4))
    straight = hsic.nhsic(hsic.gaussian(first), hsic.gaussian(second))
    shuffled = hsic.nhsic(hsic.gaussian(first[order]), hsic.gaussian(second[order]))
    assert float(straight) == pytest.approx(float(shuffled), rel=1e-3)
    assert float(hsic.nhsic(hsic.gaussian(first[:1]), hsic.gaussian(second[:1]))) == 0.0


def test_the_bottleneck_is_the_weighted_sum_and_its_gradient_is_finite() -> None:
    images, labels = torch.rand(24, 1, 6, 6, generator=generator(0)), torch.arange(24) % 3
    hidden = [values(24, 5, 3, 3), torch.zeros(24, 4), values(24, 8, seed=2).bfloat16()]
    for each in hidden:
        each.requires_grad_()
    found = hsic.bottleneck(hidden, images, labels, 3, 0.5, 2.0)
    expected = 0.0
    for each in hidden:
        kernel = oracle.gaussian(each.detach().float().numpy())
        expected += 0.5 * oracle.nhsic(oracle.gaussian(images.numpy()), kernel)
        expected -= 2.0 * oracle.nhsic(oracle.of_labels(labels.numpy()), kernel)
    assert float(found.detach()) == pytest.approx(expected, rel=5e-3, abs=5e-3)
    found.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in hidden)
    assert hidden[0].grad is not None and hidden[0].grad.any()


def test_what_is_not_a_number_stays_so() -> None:
    broken = values(6, 3)
    broken[2] = torch.nan
    assert hsic.nhsic(hsic.gaussian(broken), hsic.gaussian(values(6, 2))).isnan()


# Taps --------------------------------------------------------------------------------------------


def test_taps_give_what_each_layer_reads_once_and_in_order() -> None:
    net, batch = make_net().eval(), make_batch()
    with taps.read(net) as read:
        logits = net(batch.images)
    expected, x = [], batch.images
    layers = list(weighted(net).values())
    for module in net.modules():
        if len(list(module.children())):
            continue
        if any(module is layer for layer in layers):
            expected.append(x)
        x = module(x)
    assert torch.equal(x, logits)
    assert len(read) == len(expected) == len(layers)
    assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=True))
    assert [each.requires_grad for each in read] == [False, True, True, True]


def test_what_two_layers_read_is_there_once() -> None:
    class Fork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = (torch.nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.left(x) + self.right(x)

    net = Fork()
    with taps.read(net) as read:
        net(torch.ones(2, 3))
    assert len(read) == 2


def test_nothing_is_left_on_the_network_also_after_an_exception() -> None:
    net = make_net()
    with taps.read(net) as read:
        net(make_batch().images)
        before = len(read)
    net(make_batch().images)
    assert len(read) == before
    with pytest.raises(RuntimeError), taps.read(net):
        net(torch.ones(1, 5, 2, 2))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
