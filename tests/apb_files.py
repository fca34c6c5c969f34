"""Files of weights as the benchmark's methods leave them, of random weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from oracles import apb_networks as oracle
from torch import Tensor

from advprune.data import ImageSet, Split
from advprune.repro import generator

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Case:
    """One definition of the benchmark: its names and shapes, and what it computes."""

    model: str
    shapes: oracle.Shapes
    answer: Callable[[oracle.State, Tensor], Tensor]


CASES = {
    ("base", "R18"): Case("resnet18", oracle.resnet18_shapes(), oracle.resnet18),
    ("base", "V16"): Case("vgg16_bn_fc3", oracle.base_vgg_shapes(), oracle.base_vgg),
    ("PwoA", "V16"): Case("vgg16_bn_fc3", oracle.pwoa_vgg_shapes(), oracle.pwoa_vgg),
    ("RADMM", "V16"): Case(
        "vgg16_bn",
        oracle.short_vgg_shapes("features", True),
        lambda state, x: oracle.short_vgg(state, x, "features", F.max_pool2d),
    ),
    ("TwinRep", "V16"): Case(
        "vgg16_bn",
        oracle.short_vgg_shapes("features", False),
        lambda state, x: oracle.short_vgg(state, x, "features", F.max_pool2d),
    ),
    ("RobustBird", "R18"): Case("preact_resnet18", oracle.preact_shapes(), oracle.preact),
    ("FlyingBird", "V16"): Case(
        "vgg16_bn",
        oracle.short_vgg_shapes("features", True),
        lambda state, x: oracle.short_vgg(state, oracle.normalised(x), "features", F.max_pool2d),
    ),
    ("MAD", "R18"): Case(
        "resnet18",
        oracle.masked(oracle.resnet18_shapes()),
        lambda state, x: oracle.resnet18(oracle.unmasked(state), oracle.normalised(x)),
    ),
    ("MAD", "V16"): Case(
        "vgg16_bn_avg",
        oracle.masked(oracle.short_vgg_shapes("feature", False)),
        lambda state, x: oracle.short_vgg(
            oracle.unmasked(state), oracle.normalised(x), "feature", F.avg_pool2d
        ),
    ),
    ("Li20", "R18"): Case(
        "resnet18",
        {f"model.{name}": shape for name, shape in oracle.resnet18_shapes().items()},
        lambda state, x: oracle.resnet18(
            {name.removeprefix("model."): value for name, value in state.items()}, x
        ),
    ),
    ("Li20", "V16"): Case("vgg16_bn_avg_fc2", oracle.li20_vgg_shapes(), oracle.li20_vgg),
}


def weights(shapes: oracle.Shapes) -> oracle.State:
    """Random weights under which signals neither die nor explode, half of the kernels zero."""
    draw = generator(0)
    found: oracle.State = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif len(shape) > 1 and "mask_" not in name:
            kernel = torch.randn(shape, generator=draw) * math.sqrt(4 / math.prod(shape[1:]))
            found[name] = kernel * (torch.rand(shape, generator=draw) < 0.5)
        elif "running_var" in name or name.endswith("weight"):
            found[name] = 0.5 + torch.rand(shape, generator=draw)
        else:
            found[name] = 0.1 * torch.randn(shape, generator=draw)
    for name, value in found.items():  # the same layers in a second container
        if name.startswith(("model.0.", "model.3.")):
            first = name.replace("model.0.", "feature.").replace("model.3.", "classifier.")
            found[name] = found.get(first, value)
    return found


def image_set(shape: tuple[int, int, int], classes: tuple[str, ...] = CIFAR10) -> ImageSet:
    """One black image of that shape in every split."""
    index = torch.zeros(1, dtype=torch.long)
    split = Split(torch.zeros(1, *shape, dtype=torch.uint8), index, index)
    return ImageSet("folder:x", classes, split, split, split, split, "none", "")
