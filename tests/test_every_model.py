"""Every registered network keeps the contract, picked up by its name."""

import math
import re
from functools import cache

import pytest
import torch
from torch import nn

from advprune import models
from advprune.models import Architecture, registry
from advprune.stats import parameter_count


def arch(model: str, classes: int = 10, channels: int = 3, side: int = 32) -> Architecture:
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return Architecture(model, classes, (channels, side, side), mean, std)


def side_of(model: str) -> int:
    """The height and width of the smallest images that the network says it is made for."""
    return int(re.findall(r"(\d+)x\1", models.describe()[model])[-1])


@cache
def built(model: str) -> nn.Sequential:
    return models.build(arch(model, side=side_of(model)))


def images(count: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


every_model = pytest.mark.parametrize("name", models.names())


@every_model
def test_raw_logits_gradients_and_no_dependence_on_the_batch(name: str) -> None:
    net = built(name).eval()
    x = images(2, side=side_of(name)).requires_grad_()
    logits = net(x)
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    # Probabilities would sum to one and log-probabilities would have this at zero.
    assert (logits.logsumexp(1).abs() > 1e-3).all()
    assert not torch.allclose(logits.sum(1), torch.ones(2), atol=1e-3)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    with torch.no_grad():
        alone = torch.cat([net(image[None]) for image in x.detach()])
    assert torch.allclose(alone, logits.detach(), rtol=1e-4, atol=1e-5)


@every_model
def test_prunable_weights_are_all_the_matrices_and_filters_of_the_state_dict(name: str) -> None:
    state = built(name).state_dict()
    prunable = models.prunable(built(name))
    # Independent of layer types: norms and biases are vectors, the normalisation has no "network".
    filters = {k for k, v in state.items() if v.dim() >= 2 and k.startswith("network.")}
    assert set(prunable) == filters
    for key, module in prunable.items():
        assert state[key].data_ptr() == module.weight.data_ptr()


@every_model
def test_names_and_images_are_described(name: str) -> None:
    line = models.describe()[name]
    assert "images" in line
    assert "weights" in line


# resnet18 as counted in the benchmark of adversarial pruning; vgg16_bn by Simonyan's table with one
# 512xK head; the wide net by its 5.8 M and resnet20 by its 0.27 M with 2,560 shortcut weights. The
# VGGs by the 15.312 M of HARP's, 14.724 M of MAD's and 14.988 M of Li20's, and the exact count of
# GAP's; MobileNetV2 as torchvision's with ten classes, and GoogLeNet likewise but for 64 filters of
# 3x3 in the place of 7x7.
@pytest.mark.parametrize(
    ("name", "total", "prunable"),
    [
        ("resnet18", 11_173_962, 11_164_352),
        ("preact_resnet18", 11_172_170, 11_164_352),
        ("vgg16_bn", 14_728_266, 14_715_584),
        ("wrn28_4", 5_849_050, 5_841_840),
        ("resnet20", 272_474, 270_896),
        ("vgg16_bn_fc3", 15_311_818, 15_302_848),
        ("vgg16_bn_drop", 14_991_946, 14_977_728),
        ("vgg16_bn_avg", 14_724_042, 14_715_584),
        ("vgg16_bn_avg_fc2", 14_987_722, 14_977_728),
        ("mobilenet_v2_cifar", 2_236_682, 2_202_560),
        ("googlenet_cifar", 5_602_474, 5_587_904),
    ],
)
def test_standard_networks_have_their_published_sizes(name: str, total: int, prunable: int) -> None:
    assert parameter_count(built(name)) == total
    assert sum(m.weight.numel() for m in models.prunable(built(name)).values()) == prunable


def test_the_default_network_is_small_and_reads_grey_digits() -> None:
    net = models.build(arch("digits_resnet", channels=1, side=8))
    assert sum(m.weight.numel() for m in models.prunable(net).values()) == 306_720
    assert net(images(2, 1, 8)).shape == (2, 10)


@every_model
def test_weights_come_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = models.build(arch(name, side=side_of(name))).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    first = built(name).state_dict()
    other = models.build(arch(name, side=side_of(name)), seed=1)
    for key, weight in again.items():
        assert torch.equal(weight, first[key]), key
    for key, module in models.prunable(other).items():
        assert not torch.equal(module.weight, first[key]), key


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    weight = models.prunable(built("resnet18"))["network.blocks.7.conv2.weight"].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    assert abs(weight.mean().item()) < 1e-4


def test_normalisation_is_the_first_layer() -> None:
    net = built("digits_resnet").eval()
    x = images(2)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    by_hand = (x - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(net.get_submodule("normalize")(x), by_hand)
    assert torch.equal(net(x), net.get_submodule("network")(by_hand))
    assert list(dict(net.named_children())) == ["normalize", "network"]


def test_a_built_network_trains_and_sits_on_the_cpu() -> None:
    net = models.build(arch("resnet20"))
    assert all(module.training for module in net.modules())
    assert {p.device.type for p in net.parameters()} == {"cpu"}


def test_registering_a_name_twice_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    def lenet(classes: int, channels: int) -> nn.Module:
        """LeNet, 0.1 M weights; for 28x28 images."""
        return nn.Sequential(nn.Flatten(1), nn.Linear(channels * 4, classes))

    models.register(lenet)
    assert models.describe()["lenet"] == "LeNet, 0.1 M weights; for 28x28 images."
    assert models.build(arch("lenet", side=2))(images(2, 3, 2)).shape == (2, 10)
    with pytest.raises(ValueError, match="'lenet' is registered twice"):
        models.register(lenet)
