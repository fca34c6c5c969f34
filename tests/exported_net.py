"""A small network with everything that export and quantisation treat specially."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (3, 12, 12)
CLASSES = 10


def saturates() -> bool:
    """Whether this is an x86 processor without VNNI, whose fastest 8-bit kernels saturate."""
    described = Path("/proc/cpuinfo")
    flags = described.read_text() if described.is_file() else ""
    return "avx2" in flags and "vnni" not in flags


class Normalize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.49, 0.48, 0.44]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.21, 0.22]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class PreactBlock(nn.Module):
    """BatchNorm that no convolution precedes, and a sum that two kinds of layers read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.relu(self.bn(x))) + x


def make_net() -> nn.Sequential:
    """A network with everything that quantisation treats specially, weights as after pruning."""
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        Normalize(),
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.MaxPool2d(2, 1),
        Block(16, 16, 1),
        Block(16, 24, 2),
        PreactBlock(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            fan_in = weight[0].numel()
            weight.normal_(0, (6 / fan_in) ** 0.5, generator=rng)
            # Scales that differ between channels by two orders of magnitude, and 60 % zeros.
            spread = torch.rand(len(weight), generator=rng) * 2 - 1.7
            weight *= 10 ** spread.view(-1, *[1] * (weight.ndim - 1))
            weight *= torch.rand(weight.shape, generator=rng) > 0.6
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=rng)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
            module.bias.data.normal_(0, 0.3, generator=rng)
    first = net[5]
    assert isinstance(first, Block)
    # A channel that is dead but for its bias, one that is dead altogether, and one whose bias is
    # beyond 2**31 of its steps.
    first.conv1.weight.data[[2, 5]] = 0
    for stored in (first.bn1.bias.data, first.bn1.running_mean):
        assert stored is not None
        stored[5] = 0
    first.conv1.weight.data[9] *= 1e-12
    return net


@dataclass(frozen=True)
class Exported:
    """The network, its files, and images to try them on."""

    net: nn.Sequential
    float_onnx: Path
    int8: Path
    x86: Path
    camera: Path
    images: NDArray[np.float32]
    calibration: NDArray[np.float32]


def run(path: Path, images: NDArray, *, optimise: bool = False) -> NDArray[np.float32]:
    """Logits straight from ONNX Runtime; not optimised, every node runs as it is written."""
    return runner(path, optimise=optimise)(images)


def runner(path: Path, *, optimise: bool) -> Callable[[NDArray], NDArray[np.float32]]:
    """The same for many calls, of which each session costs more than it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])
