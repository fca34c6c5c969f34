"""Every method prunes every kind of network: grouped, with dropout, norm after a linear layer."""

import pytest
import torch
from searching import make, search

from advprune import method as methods
from advprune.data import ImageSet, Split
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.models import Architecture, build

SPARSITY = 0.9
# Its search grows a selection from every kernel, of which such layers have a thousand.
FEW_KERNELS = {"sr_gkp": 0.99}
# Depthwise convolutions; branches; batch norm and dropout around linear layers; no batch norm.
MODELS = {
    "lenet5_caffe": 28,
    "mobilenet_v2_cifar": 32,
    "googlenet_cifar": 32,
    "vgg16_bn_drop": 32,
    "vgg16_bn_fc3": 32,
}
every_method = pytest.mark.parametrize("name", methods.names())


def check(name: str, model: str) -> None:
    side = MODELS[model]
    net = build(Architecture(model, 4, (3, side, side), (0.5,) * 3, (0.25,) * 3))
    method = make(name, FEW_KERNELS.get(name, SPARSITY))
    masks = search(method, net, images=noise(side))
    weights = prunable_weights(net)
    assert masks.keys() == weights.keys()
    assert {key: mask.shape for key, mask in masks.items()} == {
        key: weight.shape for key, weight in weights.items()
    }
    total = sum(mask.numel() for mask in masks.values())
    if getattr(method, "granularity", "weight") == "weight":
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, SPARSITY)
    assert all(mask.any() for mask in masks.values())


def noise(side: int) -> ImageSet:
    """A few images without content, of four classes."""
    draw = torch.Generator().manual_seed(0)

    def split(first: int, count: int) -> Split:
        pixels = torch.randint(256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
        return Split(pixels, torch.arange(count) % 4, torch.arange(first, first + count))

    parts = {part: split(1000 * i, 4) for i, part in enumerate(("train", "val", "calib", "test"))}
    return ImageSet("noise", tuple("abcd"), **parts, augment="none", digest="")


@every_method
def test_a_small_network_without_batch_norm(name: str) -> None:
    check(name, "lenet5_caffe")


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("model", sorted(set(MODELS) - {"lenet5_caffe"}))
def test_the_networks_of_the_papers(name: str, model: str) -> None:
    check(name, model)
