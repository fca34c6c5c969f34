"""The networks of the Adversarial Pruning Benchmark: which of ours each is, by which names.

Its methods bring definitions of their own, which differ in names, biases, masks and in what stands
before the first layer; its files hold none of that but the names. Of each there is a `Form`.

    R18   resnet18, of RobustBird and FlyingBird preact_resnet18
    V16   base, HARP, HYDRA, PwoA: vgg16_bn_fc3; RADMM, TwinRep, RobustBird, FlyingBird: vgg16_bn;
          MAD: vgg16_bn_avg; Li20: vgg16_bn_avg_fc2
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from advprune.errors import BadData

Tensors = dict[str, Tensor]
Shapes = Mapping[str, torch.Size]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

NONE: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# Inside of RobustBird's and FlyingBird's networks, also of those for SVHN.
_CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_GROUPS = (2, 2, 3, 3, 3)  # convolutions of VGG-16 between its pools


@dataclass(frozen=True)
class Form:
    """A definition of the benchmark, and the network of ours that computes the same.

    Attributes:
        rename: our name of a parameter or buffer, without `network.` -> theirs.
        normalisation: before the first layer; None where neither file nor definition tells.
    """

    model: str
    rename: Callable[[str], str]
    normalisation: Statistics | None = NONE

    def expected(self, ours: Shapes) -> dict[str, torch.Size]:
        """The names and shapes of its files, of those of our network."""
        return {self.rename(name): shape for name, shape in ours.items()}

    def plain(self, found: Tensors) -> Tensors:
        """The effective weights among the `expected` tensors, one for each of ours, renamed."""
        return found


class Masked(Form):
    """MAD's: every weight and bias of a layer has a mask m, and counts w softplus(m).

    The smallest softplus is 1e-4, so a weight is exactly zero only where w itself is.
    """

    def expected(self, ours: Shapes) -> dict[str, torch.Size]:
        named = super().expected(ours)
        layers = {name.removesuffix("weight") for name, shape in named.items() if len(shape) > 1}
        return named | {
            stem + "mask_" + kind: named[stem + kind]
            for stem in layers
            for kind in ("weight", "bias")
            if stem + kind in named
        }

    def plain(self, found: Tensors) -> Tensors:
        folded = {name: value for name, value in found.items() if "mask_" not in name}
        for name, value in found.items():
            if "mask_" in name:
                weight = name.replace("mask_", "")
                folded[weight] = folded[weight] * softplus(value)
        return folded


class Doubled(Form):
    """Li20's VGG: two containers hold the same layers, so each tensor is there twice."""

    def expected(self, ours: Shapes) -> dict[str, torch.Size]:
        named = super().expected(ours)
        return named | {_second(name): shape for name, shape in named.items()}

    def plain(self, found: Tensors) -> Tensors:
        first = {name: value for name, value in found.items() if not name.startswith("model.")}
        for name, value in first.items():
            if not torch.equal(value, found[_second(name)]):
                raise BadData(f"{name} and {_second(name)} must be the same, and differ")
        return first


class Biased(Form):
    """PwoA's VGG: convolutions with a bias b before their batch norm, which ours leaves out.

    norm(x + b) with the running mean m is norm(x) with m - b; batch statistics never see b.
    """

    def expected(self, ours: Shapes) -> dict[str, torch.Size]:
        named = super().expected(ours)
        kernels = {name: shape for name, shape in named.items() if len(shape) == 4}
        return named | {_bias(name): shape[:1] for name, shape in kernels.items()}

    def plain(self, found: Tensors) -> Tensors:
        folded = dict(found)
        for name in [name for name, value in found.items() if value.dim() == 4]:
            mean = name.removesuffix("0.weight") + "1.running_mean"
            folded[mean] = found[mean] - folded.pop(_bias(name))
        return folded


class Unbiased(Form):
    """TwinRep's VGG: convolutions without the bias that ours has, which becomes zero."""

    def expected(self, ours: Shapes) -> dict[str, torch.Size]:
        named = super().expected(ours)
        biases = {_bias(name) for name, shape in named.items() if len(shape) == 4}
        return {name: shape for name, shape in named.items() if name not in biases}

    def plain(self, found: Tensors) -> Tensors:
        kernels = {name: value for name, value in found.items() if value.dim() == 4}
        return found | {_bias(name): torch.zeros(len(value)) for name, value in kernels.items()}


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _second(name: str) -> str:
    return name.replace("feature.", "model.0.", 1).replace("classifier.", "model.3.", 1)


def _resnet(name: str) -> str:
    """Ours counts blocks through; theirs has two in each of four layers."""
    name = name.replace("shortcut.conv.", "shortcut.0.").replace("shortcut.bn.", "shortcut.1.")
    name = name.replace("shortcut.weight", "shortcut.0.weight")
    return re.sub(r"^blocks\.(\d)", lambda n: f"layer{int(n[1]) // 2 + 1}.{int(n[1]) % 2}", name)


def _with_head(names: Mapping[str, str], features: str = "features") -> Callable[[str], str]:
    """Theirs, where the convolutions are in a sequence of the same order as ours."""

    def rename(name: str) -> str:
        layer, _, rest = name.partition(".")
        return f"{features if layer == 'features' else names[layer]}.{rest}"

    return rename


def _pwoa(name: str) -> str:
    layer, _, rest = name.partition(".")
    if layer != "features":
        return f"{_PWOA[layer]}.{rest}"
    index, _, leaf = rest.partition(".")
    group, left = 1, int(index)
    while left > 3 * _GROUPS[group - 1]:  # convolution, norm and ReLU each, and a pool behind them
        left -= 3 * _GROUPS[group - 1] + 1
        group += 1
    return f"layer{group}.{left // 3}.{left % 3}.{leaf}"


_FC3 = {"linear1": "classifier.0", "linear2": "classifier.2", "linear3": "classifier.4"}
_PWOA = {"linear1": "layer6.0", "linear2": "layer7.0", "linear3": "layer8"}
_FC2 = {"linear1": "classifier.0", "bn": "classifier.1", "linear2": "classifier.3"}
_FC1 = {"linear": "classifier"}
_BASE = {"R18": Form("resnet18", _resnet), "V16": Form("vgg16_bn_fc3", _with_head(_FC3))}
_BIRDS = {
    "R18": Form("preact_resnet18", _resnet, _CIFAR10),
    "V16": Form("vgg16_bn", _with_head(_FC1), _CIFAR10),
}
FORMS: dict[str, dict[str, Form]] = {
    "base": _BASE,
    "HARP": _BASE,
    "HYDRA": _BASE,
    "RADMM": _BASE | {"V16": Form("vgg16_bn", _with_head(_FC1))},
    "TwinRep": _BASE | {"V16": Unbiased("vgg16_bn", _with_head(_FC1))},
    "PwoA": _BASE | {"V16": Biased("vgg16_bn_fc3", _pwoa)},
    "RobustBird": _BIRDS,
    "FlyingBird": _BIRDS,
    "MAD": {
        "R18": Masked("resnet18", _resnet, None),
        "V16": Masked("vgg16_bn_avg", _with_head(_FC1, "feature"), None),
    },
    "Li20": {
        "R18": Form("resnet18", lambda name: "model." + _resnet(name)),
        "V16": Doubled("vgg16_bn_avg_fc2", _with_head(_FC2, "feature")),
    },
}
