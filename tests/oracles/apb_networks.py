"""The benchmark's network definitions as tables of names and shapes, and as plain arithmetic.

Nothing here knows our networks. A state dict in, logits out, each layer called by its name in the
files of the benchmark. Numbers in a VGG are positions in its sequence: convolution, norm, ReLU.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
CLASSES = 10
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
WIDTHS = (64, 128, 256, 512)
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def norm(name: str, width: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (width,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _blocks() -> Iterator[tuple[str, int, int, int]]:
    """Name, inputs, outputs and stride of the eight blocks of an 18-layer residual network."""
    inputs = 64
    for layer, width in enumerate(WIDTHS, start=1):
        for block in range(2):
            yield f"layer{layer}.{block}", inputs, width, 2 if layer > 1 and block == 0 else 1
            inputs = width


def resnet18_shapes() -> Shapes:
    found: Shapes = {"conv1.weight": (64, 3, 3, 3)} | norm("bn1", 64)
    for name, inputs, width, stride in _blocks():
        found |= {f"{name}.conv1.weight": (width, inputs, 3, 3)} | norm(f"{name}.bn1", width)
        found |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm(f"{name}.bn2", width)
        if stride != 1:
            found |= {f"{name}.shortcut.0.weight": (width, inputs, 1, 1)}
            found |= norm(f"{name}.shortcut.1", width)
    return found | linear("linear", 512, CLASSES)


def preact_shapes() -> Shapes:
    found: Shapes = {"conv1.weight": (64, 3, 3, 3)}
    for name, inputs, width, stride in _blocks():
        found |= norm(f"{name}.bn1", inputs) | {f"{name}.conv1.weight": (width, inputs, 3, 3)}
        found |= norm(f"{name}.bn2", width) | {f"{name}.conv2.weight": (width, width, 3, 3)}
        if stride != 1:
            found |= {f"{name}.shortcut.0.weight": (width, inputs, 1, 1)}
    return found | norm("bn", 512) | linear("linear", 512, CLASSES)


def _features(prefix: str, bias: bool) -> Shapes:
    found: Shapes = {}
    inputs, position = 3, 0
    for width in VGG16:
        if isinstance(width, str):
            position += 1
            continue
        found[f"{prefix}.{position}.weight"] = (width, inputs, 3, 3)
        if bias:
            found[f"{prefix}.{position}.bias"] = (width,)
        found |= norm(f"{prefix}.{position + 1}", width)
        inputs, position = width, position + 3
    return found


def base_vgg_shapes() -> Shapes:
    head = linear("classifier.0", 2048, 256) | linear("classifier.2", 256, 256)
    return _features("features", False) | head | linear("classifier.4", 256, CLASSES)


def short_vgg_shapes(prefix: str, bias: bool) -> Shapes:
    return _features(prefix, bias) | linear("classifier", 512, CLASSES)


def li20_vgg_shapes() -> Shapes:
    head = linear("classifier.0", 512, 512) | norm("classifier.1", 512)
    first = _features("feature", False) | head | linear("classifier.3", 512, CLASSES)
    second = {"feature": "model.0", "classifier": "model.3"}
    parts = {name: name.partition(".") for name in first}
    return first | {f"{second[p[0]]}.{p[2]}": first[name] for name, p in parts.items()}


def pwoa_vgg_shapes() -> Shapes:
    found, inputs, layer, place = Shapes(), 3, 1, 0
    for width in VGG16:
        if isinstance(width, str):
            layer, place = layer + 1, 0
            continue
        name = f"layer{layer}.{place}"
        found |= {f"{name}.0.weight": (width, inputs, 3, 3), f"{name}.0.bias": (width,)}
        found |= norm(f"{name}.1", width)
        inputs, place = width, place + 1
    found |= linear("layer6.0", 2048, 256) | linear("layer7.0", 256, 256)
    return found | linear("layer8", 256, CLASSES)


def masked(shapes: Shapes) -> Shapes:
    """With a mask beside every weight and bias of a convolution or linear layer."""
    layers = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1}
    return shapes | {
        f"{layer}.mask_{kind}": shapes[f"{layer}.{kind}"]
        for layer in layers
        for kind in ("weight", "bias")
        if f"{layer}.{kind}" in shapes
    }


def unmasked(state: State) -> State:
    """Each weight times log(1 + exp(mask))."""
    found = {name: value for name, value in state.items() if ".mask_" not in name}
    for name, value in state.items():
        if ".mask_" in name:
            found[name.replace("mask_", "")] = (
                found[name.replace("mask_", "")] * value.exp().log1p()
            )
    return found


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return x * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def resnet18(state: State, x: Tensor) -> Tensor:
    x = _norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
    for name, _, _, stride in _blocks():
        y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = _norm(state, f"{name}.bn1", y).relu()
        y = _norm(state, f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
        if stride != 1:
            x = F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride)
            x = _norm(state, f"{name}.shortcut.1", x)
        x = (y + x).relu()
    return _linear(state, "linear", F.avg_pool2d(x, 4).flatten(1))


def preact(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(normalised(x), state["conv1.weight"], padding=1)
    for name, _, _, stride in _blocks():
        active = _norm(state, f"{name}.bn1", x).relu()
        if stride != 1:
            x = F.conv2d(active, state[f"{name}.shortcut.0.weight"], stride=stride)
        y = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = _norm(state, f"{name}.bn2", y).relu()
        x = x + F.conv2d(y, state[f"{name}.conv2.weight"], padding=1)
    return _linear(state, "linear", F.avg_pool2d(_norm(state, "bn", x).relu(), 4).flatten(1))


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in CIFAR10)
    return (x - mean) / std


def vgg(state: State, x: Tensor, prefix: str) -> Tensor:
    """(N, 3, 32, 32) -> (N, 512, 2, 2)."""
    position = 0
    for width in VGG16:
        if isinstance(width, str):
            x, position = F.max_pool2d(x, 2), position + 1
            continue
        name = f"{prefix}.{position}"
        x = F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1)
        x, position = _norm(state, f"{prefix}.{position + 1}", x).relu(), position + 3
    return x


def short_vgg(
    state: State, x: Tensor, prefix: str, pool: Callable[[Tensor, int], Tensor]
) -> Tensor:
    return _linear(state, "classifier", pool(vgg(state, x, prefix), 2).flatten(1))


def base_vgg(state: State, x: Tensor) -> Tensor:
    x = vgg(state, x, "features").flatten(1)
    x = _linear(state, "classifier.0", x).relu()
    return _linear(state, "classifier.4", _linear(state, "classifier.2", x).relu())


def li20_vgg(state: State, x: Tensor) -> Tensor:
    x = F.avg_pool2d(vgg(state, x, "model.0"), 2).flatten(1)
    x = _norm(state, "model.3.1", _linear(state, "model.3.0", x)).relu()
    return _linear(state, "model.3.3", x)


def pwoa_vgg(state: State, x: Tensor) -> Tensor:
    layer, place = 1, 0
    for width in VGG16:
        if isinstance(width, str):
            x, layer, place = F.max_pool2d(x, 2), layer + 1, 0
            continue
        name = f"layer{layer}.{place}"
        x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        x, place = _norm(state, f"{name}.1", x).relu(), place + 1
    x = _linear(state, "layer7.0", _linear(state, "layer6.0", x.flatten(1)).relu()).relu()
    return _linear(state, "layer8", x)
