"""Promise: the twin of a file computes what the file computes, and has a useful gradient."""

import copy
import re
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from attack_nets import digit_net, digits
from exported_net import CLASSES, SHAPE, Exported, run
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchvision.models import VisionTransformer

from advprune import models
from advprune.attacks.pgd import pgd
from advprune.data import load as load_data
from advprune.errors import Refused
from advprune.models import Architecture
from advprune.repro import ImageRandom, seeded
from advprune.twin import differentiable
from advprune.twin.codes import dequantize, quantize
from advprune.twin.operators import OPERATORS
from advprune.types import Threat
from deploy.runtime import load
from export import graph
from export.encodings import x86_form
from export.quantize import quantize as quantize_file
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]


def twin_of(path: Path) -> nn.Module:
    return differentiable(path.read_bytes(), path.name)


def logits_of(twin: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return twin(torch.from_numpy(images)).numpy()


def slope(net: nn.Module, images: NDArray[Any]) -> Tensor:
    """Gradient of a function of all logits with respect to the images."""
    x = torch.from_numpy(images).requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x).logsumexp(dim=1).sum(), x)
    return gradient


def random_images(count: int, shape: tuple[int, int, int], seed: int = 1) -> NDArray[np.float32]:
    """8-bit ones, so that every kind of engine is asked the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape))
    return pixels.astype(np.float32) / np.float32(255)


def assert_same_gradients(twin: nn.Module, net: nn.Module, images: NDArray[np.float32]) -> None:
    """In float64: in float32 a deep network's gradient is not its own to 1e-2, because of kinks.

    Batch norms were folded in float32, so that some kinks still move, but not those of every image.
    """
    doubles = copy.deepcopy(twin).double(), copy.deepcopy(net).double()
    got, expected = (slope(one, images.astype(np.float64)).flatten(1) for one in doubles)
    gaps = (got - expected).norm(dim=1) / expected.norm(dim=1)
    assert gaps.min() < 1e-4
    assert gaps.max() < 0.05


# --- the same function ---


def test_the_float_twin_is_the_network(exported: Exported) -> None:
    twin, images = twin_of(exported.float_onnx), random_images(100, SHAPE)
    assert np.abs(logits_of(twin, images) - load(exported.float_onnx).predict(images)).max() < 1e-5
    assert_same_gradients(twin, exported.net.eval(), images[:32])


@pytest.mark.parametrize("form", ["int8", "x86", "camera"])
def test_the_8_bit_twin_is_the_engine(exported: Exported, form: str) -> None:
    path: Path = getattr(exported, form)
    images = random_images(300, SHAPE)
    got, fused = logits_of(twin_of(path), images), load(path).predict(images)
    assert (got.argmax(axis=1) == fused.argmax(axis=1)).mean() >= 0.995
    # What is left are values next to a tie, which another order of float sums rounds differently.
    assert (np.abs(got - fused).max(axis=1) < 1e-5).mean() > 0.9
    frames = np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    as_written = run(path, np.ascontiguousarray(frames) if form == "camera" else images)
    assert (np.abs(got - as_written).max(axis=1) < 1e-5).mean() > 0.9
    assert np.abs(got - logits_of(twin_of(exported.float_onnx), images)).mean() > 1e-3


def test_pixels_of_a_camera_engine_are_rounded_half_to_even(exported: Exported) -> None:
    twin, without = twin_of(exported.camera), twin_of(exported.x86)
    images = np.random.default_rng(3).random((50, *SHAPE), dtype=np.float32)
    rounded = np.rint(images * np.float32(255)).astype(np.float32) / np.float32(255)
    assert np.array_equal(logits_of(twin, images), logits_of(without, rounded))
    gradient, expected = slope(twin, images), slope(without, rounded)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["float_onnx", "int8", "x86", "camera"])
def test_the_batch_is_free_and_changes_nothing(exported: Exported, form: str) -> None:
    twin, images = twin_of(getattr(exported, form)), random_images(64, SHAPE)
    together = logits_of(twin, images)
    assert together.shape == (64, CLASSES)
    for size in (1, 7):
        parts = [logits_of(twin, images[i : i + size]) for i in range(0, 64, size)]
        np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-5)


# --- the gradient ---


@dataclass(frozen=True)
class Digits:
    """A trained network and its 8-bit files."""

    net: nn.Module
    int8: Path
    x86: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    files = Digits(digit_net(Threat(0.1)), folder / "int8.onnx", folder / "x86.onnx")
    train = load_data("digits", data_dir=Path("unused")).train
    to_onnx(files.net, (1, 8, 8), folder / "float.onnx")
    quantize_file(folder / "float.onnx", (train.images[:300] / 255).numpy(), files.int8)
    graph.save(x86_form(graph.load(files.int8)), files.x86)
    return files


@pytest.mark.parametrize("form", ["int8", "x86"])
def test_the_8_bit_gradient_points_where_that_of_the_float_network_does(
    trained: Digits, form: str
) -> None:
    images = (digits().images / 255).numpy()
    got, expected = slope(twin_of(getattr(trained, form)), images), slope(trained.net, images)
    along = cosine_similarity(got.flatten(1), expected.flatten(1))
    # Rounding moves a unit of a few images across its kink; elsewhere nothing changes.
    assert along.min() > 0.7
    assert along.quantile(0.1) > 0.95
    assert along.mean() > 0.98
    assert (got.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).mean() == pytest.approx(
        1.0, abs=0.05
    )


@pytest.mark.parametrize("form", ["int8", "x86"])
def test_an_attack_through_the_twin_breaks_the_engine(trained: Digits, form: str) -> None:
    path: Path = getattr(trained, form)
    engine, split, threat = load(path), digits(), Threat(0.15)
    x = split.images / 255
    streams = ImageRandom(1, split.indices)

    def right(images: Tensor) -> int:
        logits = torch.from_numpy(engine.predict(images.numpy()))
        return int((logits.argmax(dim=1) == split.labels).sum())

    broken = right(pgd(twin_of(path), x, split.labels, threat, streams))
    noise = right(threat.project(x + threat.eps * streams.normal(*x.shape[1:]).sign(), x))
    assert right(x) > 110
    assert broken < noise - 20
    assert broken <= right(pgd(trained.net, x, split.labels, threat, streams)) + 2


def test_rounding_by_hand() -> None:
    x = torch.tensor([-9.0, -1.25, -0.25, 0.25, 0.75, 1.2, 63.6, 63.8, 99.0], requires_grad=True)
    scale = torch.tensor(0.5)
    codes = quantize(x, scale, torch.tensor(3, dtype=torch.uint8))
    # x / scale is -18, -2.5, -0.5, 0.5, 1.5, 2.4, 127.2, 127.6, 198; ties go to the even side.
    assert codes.tolist() == [0, 1, 3, 3, 5, 5, 130, 131, 201]
    values = dequantize(codes, scale, torch.tensor(3, dtype=torch.uint8))
    assert values.tolist() == [-1.5, -1.0, 0.0, 0.0, 1.0, 1.0, 63.5, 64.0, 99.0]
    weights = torch.arange(1.0, 10.0)
    (gradient,) = torch.autograd.grad((weights * values).sum(), x)
    assert gradient.tolist() == weights.tolist()

    # As if nothing were rounded, nor cut.
    codes = quantize(x, scale, torch.tensor(0, dtype=torch.int8))
    assert codes.tolist() == [-18, -2, 0, 0, 2, 2, 127, 127, 127]
    (gradient,) = torch.autograd.grad((weights * dequantize(codes, scale)).sum(), x)
    assert gradient.tolist() == weights.tolist()


def test_every_channel_is_rounded_by_its_own_scale() -> None:
    x = torch.full((2, 3, 1, 2), 1.3, requires_grad=True)
    scales = torch.tensor([0.5, 1.0, 0.01])
    zeros = torch.tensor([0, 5, 0], dtype=torch.int8)
    codes = quantize(x, scales, zeros, axis=1)
    assert codes[1, :, 0, 1].tolist() == [3, 6, 127]
    assert dequantize(codes, scales, zeros)[0, :, 0, 0].tolist() == pytest.approx([1.5, 1.0, 1.27])
    assert torch.equal(quantize(x.mT, scales, zeros, axis=-3), codes.mT)
    (gradient,) = torch.autograd.grad(codes.sum(), x)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx([2, 1, 100])


# --- a module like others, and a frugal one ---


def test_the_twin_has_nothing_to_train_and_can_be_copied(exported: Exported) -> None:
    twin = twin_of(exported.int8)
    assert not list(twin.parameters())
    assert not any(buffer.requires_grad for buffer in twin.buffers())
    images = random_images(4, SHAPE)
    assert np.array_equal(logits_of(copy.deepcopy(twin), images), logits_of(twin, images))


def test_constants_are_computed_once_and_values_live_no_longer_than_needed(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, alive = Counter(), []
    results: list[weakref.ref[Tensor]] = []
    twin = twin_of(exported.x86)

    def watched(kind: str):
        operator = OPERATORS[kind]

        def call(*inputs, **settings):
            calls[kind] += 1
            alive.append(sum(result() is not None for result in results))
            result = operator(*inputs, **settings)
            assert isinstance(result, Tensor)
            results.append(weakref.ref(result))
            return result

        return call

    for kind in OPERATORS:
        monkeypatch.setitem(OPERATORS, kind, watched(kind))
    logits_of(twin, random_images(2, SHAPE))
    kinds = Counter(node.op_type for node in onnx.load(exported.x86).graph.node)
    assert calls["Conv"] == kinds["Conv"] == calls["Centre"] - kinds["Gemm"]
    # Weights and biases are dequantised no more, nor activations that only sums of codes read.
    assert 0 < calls["DequantizeLinear"] < kinds["QuantizeLinear"]
    assert max(alive) <= 4
    assert sum(calls.values()) > 40


# --- every operator ---

SIZE = (2, 4, 6)
# Operator, result or results, operands, attributes.
Line = tuple[str, str | list[str], list[Any], dict[str, Any]]


def net_of(
    nodes: Iterable[Line],
    opset: int = 20,
    shape: tuple = ("batch", *SIZE),
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """A graph of images (batch, 2, 4, 6); operands that are arrays become constants."""
    constants: list[TensorProto] = []
    lines = []
    for op, result, operands, attributes in nodes:
        names = []
        for operand in operands:
            if not isinstance(operand, str):
                operand = numpy_helper.from_array(np.asarray(operand), f"c{len(constants)}")
                constants.append(operand)
                operand = operand.name
            names.append(operand)
        outputs = result if isinstance(result, list) else [result]
        name = f"node_{op}" + "_again" * any(line.op_type == op for line in lines)
        lines.append(helper.make_node(op, names, outputs, name, **attributes))
    entry = helper.make_tensor_value_info("images", kind, shape)
    exit_ = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])
    net = helper.make_graph(lines, "net", [entry], [exit_], constants)
    return helper.make_model(net, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def f32(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


FLAT: Line = ("Flatten", "logits", ["y"], {})
ROWS: Line = ("Reshape", "rows", ["images", ints(0, 12, -1)], {})
CODES: list[Line] = [
    ("QuantizeLinear", "q", ["images", np.float32(0.01), np.uint8(100)], {}),
    ("Max", "high", ["q", np.uint8(120)], {}),
    ("Min", "low", ["high", np.uint8(180)], {}),
    ("DequantizeLinear", "y", ["low", np.float32(0.01), np.uint8(100)], {}),
    FLAT,
]
CASES: dict[str, list[Line]] = {
    "Add": [("Add", "y", ["images", f32(2, 1, 6)], {}), FLAT],
    "AveragePool": [
        (
            "AveragePool",
            "y",
            ["images"],
            {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]},
        ),
        FLAT,
    ],
    "AveragePool of padding too": [
        (
            "AveragePool",
            "y",
            ["images"],
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        ),
        FLAT,
    ],
    "BatchNormalization": [
        (
            "BatchNormalization",
            "y",
            ["images", f32(2), f32(2), f32(2), np.abs(f32(2)) + 1],
            {"epsilon": 1e-3},
        ),
        FLAT,
    ],
    # One constant under two names.
    "Cast": [
        ("Add", "more", ["images", f32(2, 1, 6)], {}),
        ("Cast", "again", ["c0"], {"to": TensorProto.FLOAT}),
        ("Add", "y", ["more", "again"], {}),
        FLAT,
    ],
    "Clip": [("Clip", "y", ["images", np.float32(0.2), np.float32(0.7)], {}), FLAT],
    "Clip on one side": [("Clip", "y", ["images", "", np.float32(0.7)], {}), FLAT],
    "Concat": [
        ("Relu", "same", ["images"], {}),
        ("Concat", "y", ["images", "same", "images"], {"axis": -2}),
        FLAT,
    ],
    "Conv": [
        (
            "Conv",
            "y",
            ["images", f32(4, 1, 3, 2), f32(4)],
            {"group": 2, "strides": [1, 2], "pads": [2, 1, 2, 1], "dilations": [2, 1]},
        ),
        FLAT,
    ],
    "DequantizeLinear": CODES,
    "Div": [("Div", "y", ["images", np.abs(f32(2, 4, 1)) + 1], {}), FLAT],
    "Expand": [
        ("Flatten", "flat", ["images"], {}),
        ("Shape", "batch", ["images"], {"start": 0, "end": 1}),
        ("Concat", "shape", ["batch", ints(48)], {"axis": 0}),
        ("Expand", "row", [f32(1, 48), "shape"], {}),
        ("Add", "logits", ["flat", "row"], {}),
    ],
    "Flatten": [("Flatten", "logits", ["images"], {"axis": 1})],
    "Gather": [("Gather", "y", ["images", ints(3, -1, 0).reshape(3, 1)], {"axis": -2}), FLAT],
    "GatherND": [
        ("Transpose", "first", ["images"], {"perm": [2, 3, 0, 1]}),
        ("GatherND", "some", ["first", ints(0, 1, 3, 5, 2, 0).reshape(3, 2)], {}),
        ("Transpose", "y", ["some"], {"perm": [1, 0, 2]}),
        FLAT,
    ],
    "Gelu": [("Gelu", "y", ["images"], {}), FLAT],
    "Gelu by tanh": [("Gelu", "y", ["images"], {"approximate": "tanh"}), FLAT],
    "Gemm": [
        ("Flatten", "flat", ["images"], {}),
        ("Gemm", "logits", ["flat", f32(5, 48), f32(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ],
    "GlobalAveragePool": [("GlobalAveragePool", "y", ["images"], {}), FLAT],
    "HardSigmoid": [("HardSigmoid", "y", ["images"], {"alpha": 2.0, "beta": -0.5}), FLAT],
    "HardSwish": [("HardSwish", "y", ["images"], {}), FLAT],
    "LayerNormalization": [
        ("LayerNormalization", "y", ["images", f32(4, 6), f32(4, 6)], {"axis": 2}),
        FLAT,
    ],
    "MatMul": [ROWS, ("MatMul", "y", ["rows", f32(4, 3)], {}), FLAT],
    "Max": [("Max", "y", ["images", np.float32(0.5)], {}), FLAT],
    "MaxPool": [
        (
            "MaxPool",
            "y",
            ["images"],
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        ),
        FLAT,
    ],
    "Min": [("Min", "y", ["images", np.float32(0.5)], {}), FLAT],
    "Mul": [("Mul", "y", ["images", f32(2, 1, 1)], {}), FLAT],
    "QuantizeLinear": CODES,
    "Range": [
        ("Shape", "batch", ["images"], {"start": 0, "end": 1}),
        ("Squeeze", "count", ["batch"], {}),
        ("Range", "order", [np.int64(0), "count", np.int64(1)], {}),
        ("Gather", "y", ["images", "order"], {}),
        FLAT,
    ],
    "ReduceMean": [("ReduceMean", "y", ["images", ints(-1, 1)], {"keepdims": 0}), FLAT],
    "Relu": [("Sub", "low", ["images", np.float32(0.5)], {}), ("Relu", "y", ["low"], {}), FLAT],
    "Reshape": [("Reshape", "logits", ["images", ints(-1, 48)], {"allowzero": 1})],
    "Shape": [
        ("Shape", "shape", ["images"], {}),
        ("Gather", "batch", ["shape", ints(0)], {}),
        ("Concat", "sizes", ["batch", ints(48)], {"axis": 0}),
        ("Reshape", "logits", ["images", "sizes"], {}),
    ],
    "Sigmoid": [("Sigmoid", "y", ["images"], {}), FLAT],
    "Slice": [
        ("Slice", "y", ["images", ints(1, -(2**63)), ints(2**63 - 1, -1), ints(2, 3)], {}),
        FLAT,
    ],
    "Softmax": [("Softmax", "y", ["images"], {"axis": 1}), FLAT],
    "Split": [
        ("Split", ["y", "z"], ["images"], {"axis": 2, "num_outputs": 2}),
        ("Sub", "d", ["y", "z"], {}),
        ("Flatten", "logits", ["d"], {}),
    ],
    "Squeeze": [
        ("ReduceMean", "mean", ["images", ints(2, 3)], {}),
        ("Squeeze", "logits", ["mean", ints(2, -1)], {}),
    ],
    "Sub": [("Sub", "y", ["images", f32(2, 4, 6)], {}), FLAT],
    "Transpose": [("Transpose", "y", ["images"], {"perm": [0, 2, 3, 1]}), FLAT],
    "Unsqueeze": [("Unsqueeze", "y", ["images", ints(-1, 1)], {}), FLAT],
    "Where": [("Where", "y", [f32(4, 6) > 0, "images", np.float32(7)], {}), FLAT],
}


def test_axes_are_an_attribute_before_opset_18() -> None:
    lines: list[Line] = [("ReduceMean", "y", ["images"], {"axes": [2, 3], "keepdims": 1}), FLAT]
    twin = differentiable(net_of(lines, 17).SerializeToString(), "net.onnx")
    images = random_images(3, SIZE)
    np.testing.assert_allclose(logits_of(twin, images), images.mean((2, 3)), atol=1e-6)


def test_every_operator_has_a_case() -> None:
    tried = {op for lines in CASES.values() for op, *_ in lines}
    assert set(OPERATORS) - tried == {"Centre", "Rescale"}, "our own"
    assert all(name.split()[0] in {op for op, *_ in lines} for name, lines in CASES.items())


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_that_of_the_engine(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net_of(CASES[name]), path)
    images = np.random.default_rng(1).random((3, *SIZE), dtype=np.float32)
    twin = twin_of(path)
    np.testing.assert_allclose(logits_of(twin, images), run(path, images), atol=2e-6)
    # Against differences of the function itself, where rounding does not make steps of it.
    if "QuantizeLinear" not in name and "DequantizeLinear" not in name:
        x = torch.from_numpy(images).double().requires_grad_(True)
        assert torch.autograd.gradcheck(twin.double(), x, eps=1e-7)


# --- networks ---

SIDES = {"torchvision:inception_v3": 96}
TRANSFORMER = "a small transformer"


def transformer() -> nn.Module:
    """What the operators of torchvision's are, without their 86 million weights."""
    with seeded(0, "transformer"):
        net = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)
        nn.init.normal_(net.heads[-1].weight)  # pyright: ignore[reportArgumentType]
    return net.eval()


def built(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with batch statistics of images, and the smallest shape it is made for."""
    if name == TRANSFORMER:
        return transformer(), (3, 32, 32)
    described = models.describe().get(name, "64x64")
    side = SIDES.get(name) or int(re.findall(r"(\d+)x\1", described)[-1])
    shape = (3, side, side)
    net = models.build(Architecture(name, 10, shape, (0.5,) * 3, (0.3,) * 3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad(), seeded(0, "dropout"):
        net.train()(torch.from_numpy(random_images(32, shape, seed=2)))
    return net.eval(), shape


FAST = ("digits_resnet", "lenet5_caffe", TRANSFORMER)
FOREIGN = [
    f"torchvision:{name}"
    for name in (
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "resnet18",
        "shufflenet_v2_x0_5",
        "squeezenet1_0",
        "vgg11_bn",
    )
]


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in (*models.names(), TRANSFORMER, *FOREIGN)
    ],
)
def test_every_network_has_a_twin(name: str, tmp_path: Path) -> None:
    net, shape = built(name)
    path, int8 = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    to_onnx(net, shape, path)
    images = random_images(8, shape)
    twin, expected = twin_of(path), load(path).predict(images)
    # The largest network here, untrained, does not agree with its own file to 1e-4.
    own = np.abs(logits_of(net, images) - expected).max()
    assert np.abs(logits_of(twin, images) - expected).max() < 1e-4 + 2 * own
    assert own < 1e-3 * max(1.0, float(np.abs(expected).max()))
    assert_same_gradients(twin, net, images[:4])
    quantize_file(path, random_images(128, shape, seed=2), int8)
    graph.save(x86_form(graph.load(int8)), tmp_path / "x86.onnx")
    for file in (int8, tmp_path / "x86.onnx"):
        twin, engine = twin_of(file), load(file).predict(images)
        gap, rounding = np.abs(logits_of(twin, images) - engine), np.abs(expected - engine)
        # Untrained logits differ little between images, so their order is no measure.
        assert np.median(gap) < 0.5 * np.median(rounding) + 1e-6
        assert (slope(twin, images[:2]).flatten(1).norm(dim=1) > 0).all()


# --- refusals ---


def refusal(code: int, match: str):
    return pytest.raises(Refused, match=match, check=lambda error: error.exit_code == code)


def refused(model: ModelProto, code: int, match: str) -> None:
    with refusal(code, match) as caught:
        differentiable(model.SerializeToString(), "net.onnx")
    assert "\n" not in str(caught.value)


CONV: Line = ("Conv", "y", ["images", f32(4, 2, 3, 3)], {"kernel_shape": [3, 3]})


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (("Tan", "y", ["images"], {}), r"no gradient through Tan 'node_Tan'; attack with square"),
        (
            ("Conv", *CONV[1:3], {"auto_pad": "SAME_UPPER"}),
            "Conv 'node_Conv' with auto_pad SAME_UP",
        ),
        (("Conv", *CONV[1:3], {"pads": [0, 0, 1, 1]}), r"pads \[0, 0, 1, 1\], which differ"),
        (("ReduceMean", "y", ["images"], {}), "ReduceMean 'node_ReduceMean' with no axes"),
        (("Slice", "y", ["images", ints(0), ints(9), ints(2), ints(2)], {}), r"with steps \[2\]"),
        (("Cast", "y", ["images"], {"to": TensorProto.DOUBLE}), "with to DOUBLE"),
        (
            ("QuantizeLinear", "y", ["images", np.float32(1), np.int8(0)], {"saturate": 0}),
            "'node_QuantizeLinear', which got an unexpected keyword argument 'saturate'",
        ),
        (("MaxPool", ["y", "z"], ["images"], {"kernel_shape": [1, 1]}), "with a second result"),
    ],
)
def test_what_has_no_twin_is_named_with_a_remedy(line: Line, match: str) -> None:
    refused(net_of([line, FLAT]), 78, match)


def test_all_unknown_operators_are_named_at_once() -> None:
    lines: list[Line] = [
        ("Tan", "a", ["images"], {}),
        ("Sinh", "b", ["a"], {}),
        ("Sin", "y", ["b"], {}),
    ]
    refused(net_of([*lines, FLAT]), 78, "through Sin 'node_Sin', Sinh 'node_Sinh', Tan 'node_Tan';")


def test_other_domains_and_opsets_are_refused() -> None:
    foreign = net_of([("Relu", "y", ["images"], {}), FLAT])
    foreign.graph.node[0].domain = "com.microsoft"
    foreign.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refused(foreign, 78, r"no gradient through com\.microsoft\.Relu 'node_Relu'")
    for opset in (12, 25):
        refused(net_of(CASES["Sigmoid"], opset), 78, f"opset {opset}, other than 13 to 24")


@pytest.mark.parametrize(
    "model",
    [
        net_of([("Flatten", "logits", ["images"], {})], shape=(1, *SIZE)),
        net_of([("Flatten", "logits", ["images"], {})], shape=("batch", 2, "height", 6)),
        net_of([("Flatten", "logits", ["images"], {})], shape=("batch", 48)),
        net_of([("Flatten", "logits", ["images"], {})], kind=TensorProto.DOUBLE),
    ],
)
def test_a_graph_that_takes_no_images_is_refused(model: ModelProto) -> None:
    refused(model, 65, r"net.onnx: takes .*images.*; need one input, float32 \(batch, C, H, W\) or")


def test_a_graph_that_gives_no_logits_is_refused() -> None:
    refused(net_of([("Relu", "logits", ["images"], {})]), 65, r"gives torch.float32 \(2, 2, 4, 6\)")


def test_broken_files_are_refused(exported: Exported, tmp_path: Path) -> None:
    data = exported.float_onnx.read_bytes()
    for broken in (b"", b"not a model", data[: len(data) // 2]):
        with refusal(65, r"^net.onnx: not a valid ONNX model \(.*\); export it again$"):
            differentiable(broken, "net.onnx")
    refused(net_of([("Add", "y", ["images", f32(3, 4, 7)], {}), FLAT]), 65, "cannot be computed")
    unreadable = net_of([("Relu", "y", ["images"], {}), FLAT]).SerializeToString()
    with refusal(65, r"^net.onnx: not a valid ONNX model \(.*utf-8.*\); export it again$"):
        differentiable(unreadable.replace(b"Relu", b"\xff\xff\xff\xff"), "net.onnx")
    unknown = net_of([("Relu", "y", ["images"], {}), FLAT])
    unknown.graph.input[0].type.tensor_type.elem_type = 99
    refused(unknown, 65, r"no name defined for value 99")
    onnx.save(
        onnx.load(exported.float_onnx),
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    with refusal(65, r"weights lie in another file; export with external_data=False$"):
        twin_of(tmp_path / "split.onnx")
