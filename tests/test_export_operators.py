"""Promise: what GoogLeNet, MobileNetV2, LeNet and the VGGs are made of runs in 8 bits."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_net import run
from numpy.typing import NDArray
from torch import Tensor, nn

from advprune import models
from advprune.models import Architecture
from advprune.repro import seeded
from advprune.twin import differentiable
from export import graph
from export.check import assert_fused, assert_same_function, parity, sparsity_kept
from export.encodings import x86_form
from export.fake_quant import FakeQuant, write
from export.quantize import quantize
from export.to_onnx import to_onnx


@dataclass(frozen=True)
class Way:
    """A network, its three files, and the images that it was calibrated on."""

    net: nn.Module
    float_onnx: Path
    int8: Path
    x86: Path
    images: NDArray[np.float32]


def whole_way(net: nn.Module, shape: tuple[int, int, int], folder: Path) -> Way:
    """Half of the weights are zero, as after pruning, and batch statistics are of the images."""
    images = np.random.default_rng(0).random((128, *shape), dtype=np.float32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) > 0.5
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.from_numpy(images[:64]))
    files = {name: folder / f"{name}.onnx" for name in ("float_onnx", "int8", "x86")}
    way = Way(net=net.eval(), images=images, **files)
    to_onnx(net, shape, way.float_onnx)
    quantize(way.float_onnx, images, way.int8)
    graph.save(x86_form(graph.load(way.int8)), way.x86)
    return way


def check_files(way: Way) -> None:
    """The float file is the network, both encodings are one function, and zeros stay zeros."""
    images = way.images[:16]
    with torch.no_grad():
        expected = way.net(torch.from_numpy(images)).numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    for optimise in (False, True):
        floats = run(way.float_onnx, images, optimise=optimise)
        assert parity(expected, floats)["max_logit_gap"] < 1e-4 * scale
    int8, x86 = run(way.int8, images), run(way.x86, images)
    np.testing.assert_array_equal(int8, x86)
    # Untrained logits differ little between images, so a whole spread is far too much.
    assert 0 < parity(expected, int8)["mean_logit_gap"] < expected.std()
    kept = sparsity_kept(way.float_onnx, way.int8)
    assert {name: before for name, (before, _) in kept.items()} == {
        name: int(module.weight.count_nonzero())
        for name, module in models.prunable(way.net).items()
    }


class Inception(nn.Module):
    """Three branches of very different magnitude, (N, 3, H, W) -> (N, 15, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(6)
        nn.init.constant_(norm.weight, 10.0)
        self.wide = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), norm, nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, groups=3), nn.ReLU6())
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.wide(x), self.depthwise(x), self.pool(x).relu()], 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Way:
    with seeded(0, "operators"):
        net = nn.Sequential(
            Inception(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(1),
            nn.Dropout(0.5),
            nn.Linear(15 * 2 * 2, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )
        return whole_way(net, (3, 12, 12), tmp_path_factory.mktemp("small"))


def test_the_files_of_every_operator_are_the_network(small: Way) -> None:
    check_files(small)


def test_every_operator_can_be_trained(small: Way, tmp_path: Path) -> None:
    check_training(small, tmp_path)


def test_every_operator_runs_on_integers(small: Way) -> None:
    counts = assert_fused(small.x86)
    assert counts["QLinearConv"] == 3
    assert counts["QLinearConcat"] == 1
    assert counts["QLinearAveragePool"] == 1
    assert counts["QGemm"] == 2
    assert not counts.keys() & {"BatchNormalization", "Concat", "AveragePool", "Gemm"}


def test_concatenating_rounds_nothing_twice(small: Way) -> None:
    model = graph.load(small.int8)
    producers, readers = graph.producers(model), graph.consumers(model)
    (concat,) = (node for node in model.graph.node if node.op_type == "Concat")
    sources = [producers[name] for name in concat.input]
    assert [source.op_type for source in sources] == ["DequantizeLinear"] * 3
    (after,) = readers[concat.output[0]]
    assert after.op_type == "QuantizeLinear"
    assert {source.input[1] for source in sources} == {after.input[1]}
    largest = graph.constants(model)[after.input[1]] * 127
    with torch.no_grad():
        values = small.net.get_submodule("0")(torch.from_numpy(small.images))
    assert largest == pytest.approx(float(values.max()), rel=1e-5)


def test_shapes_that_a_graph_concatenates_stay_integers(tmp_path: Path) -> None:
    class Token(nn.Module):
        """One learned row before those of the image, as in a vision transformer."""

        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 1, 6))
            self.linear = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            token = self.token.expand(x.shape[0], -1, -1)
            return self.linear(torch.cat([token, x.flatten(2)], 1).mean(1))

    with seeded(0, "token"):
        way = whole_way(Token(), (4, 2, 3), tmp_path)
    kinds = [node.op_type for node in graph.load(way.float_onnx).graph.node]
    assert kinds.count("Concat") == 2
    check_files(way)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_registered_network_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    side = int(re.findall(r"(\d+)x\1", models.describe()[name])[-1])
    shape, spread = (3, side, side), (0.5, 0.5, 0.5)
    net = models.build(Architecture(name, 10, shape, spread, spread))
    with seeded(0, "half"):
        way = whole_way(net, shape, tmp_path)
    check_files(way)
    assert_fused(way.x86)
    check_training(way, tmp_path)


def check_training(way: Way, folder: Path) -> None:
    """What learns starts as the file, and the file ends as what has learned."""
    images = torch.from_numpy(way.images[:8])
    model = graph.load(way.int8)
    net = FakeQuant(graph.load(way.float_onnx), model, "learned")
    twin = differentiable(way.int8.read_bytes(), way.int8.name)
    with torch.no_grad():
        before = net(images)
        torch.testing.assert_close(before, twin(images), rtol=0, atol=0)
    learning = list(net.parameters())
    slopes = torch.autograd.grad(net(images).square().mean(), learning)
    with torch.no_grad():
        for parameter, slope in zip(learning, slopes, strict=True):
            parameter.sub_(0.01 * slope / slope.norm().clamp_min(1e-6))
        after = net(images)
    assert not torch.equal(before, after)
    write(net, model, folder / "trained.onnx")
    trained = differentiable((folder / "trained.onnx").read_bytes(), "trained.onnx")
    with torch.no_grad():
        torch.testing.assert_close(trained(images), after, rtol=0, atol=0)
    graph.save(x86_form(graph.load(folder / "trained.onnx")), folder / "trained.x86.onnx")
    assert_same_function(folder / "trained.onnx", [folder / "trained.x86.onnx"], way.images[:8])
    sparsity_kept(way.float_onnx, folder / "trained.onnx")
