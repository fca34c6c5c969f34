"""Promise: the networks that pruning papers report on are the papers' networks."""

import pytest
import torch
from torch import Tensor, nn

from advprune import models
from advprune.models import Architecture


def build(model: str, channels: int = 3, side: int = 32) -> nn.Sequential:
    spread = (0.5,) * channels
    return models.build(Architecture(model, 10, (channels, side, side), spread, spread)).eval()


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def kinds(net: nn.Module, path: str) -> list[str]:
    return [type(layer).__name__ for layer in net.get_submodule(path).children()]


def read_by(net: nn.Sequential, path: str, images: Tensor) -> tuple[int, ...]:
    """The shape of what the module at `path` reads."""
    seen: list[tuple[int, ...]] = []
    module = net.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    net(images)
    handle.remove()
    return seen[0]


def test_vgg_of_hydra_and_harp() -> None:
    net = build("vgg16_bn_fc3")
    layers = list(models.prunable(net).values())
    assert len(layers) == 16
    assert all(layer.bias is None for layer in layers[:13])
    assert [tuple(layer.weight.shape) for layer in layers[13:]] == [
        (256, 2048),
        (256, 256),
        (10, 256),
    ]
    assert kinds(net, "network.features").count("MaxPool2d") == 4
    x = torch.rand(2, 3, 32, 32)
    assert read_by(net, "network.pool", x) == (2, 512, 2, 2)
    # Between two linear layers there is a ReLU, behind the last one there is none.
    assert kinds(net, "network")[-5:] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_vgg_of_gap_has_the_counts_of_its_paper() -> None:
    net = build("vgg16_bn_drop")
    layers = list(models.prunable(net).values())
    assert sum(p.numel() for p in net.parameters()) == 14_991_946
    hidden = [p for layer in layers[:-1] for p in layer.parameters()]
    assert sum(p.numel() for p in hidden) == 14_977_344


def test_dropout_follows_every_convolution_but_the_last_of_its_group() -> None:
    net = build("vgg16_bn_drop")
    conv, drop, pool = ["Conv2d", "BatchNorm2d", "ReLU"], ["Dropout"], ["MaxPool2d"]
    two, three = conv + drop + conv + pool, conv + drop + conv + drop + conv + pool
    assert kinds(net, "network.features") == 2 * two + 3 * three
    rates = [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.3] + [0.4] * 7 + [0.5] * 2
    head = ["Flatten", "Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert kinds(net, "network")[1:] == head


@pytest.mark.parametrize(
    ("name", "stem", "last", "maps"),
    [
        ("googlenet", "network.conv1.conv.weight", "network.avgpool", (2, 1024, 8, 8)),
        ("mobilenet_v2", "network.features.0.0.weight", "network.features.18", (2, 320, 4, 4)),
    ],
)
def test_small_images_change_the_stem_and_strides_alone(
    name: str, stem: str, last: str, maps: tuple[int, ...]
) -> None:
    x = torch.rand(2, 3, 32, 32)
    ours, theirs = build(f"{name}_cifar"), build(f"torchvision:{name}")
    expected = shapes(theirs)
    assert shapes(ours) == expected | {stem: (*expected[stem][:2], 3, 3)}
    # One pixel is all that the stems for large images leave of these.
    assert read_by(theirs, last, x)[2:] == (1, 1)
    assert read_by(ours, last, x) == maps


def test_lenet_reads_28_pixels_and_has_caffe_s_layers() -> None:
    net = build("lenet5_caffe", channels=1, side=28)
    assert sum(p.numel() for p in net.parameters()) == 431_080
    weights = [tuple(layer.weight.shape) for layer in models.prunable(net).values()]
    assert weights == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    group = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds(net, "network") == [*group, *group, "Flatten", "Linear", "ReLU", "Linear"]
