"""Promise: 8 bits in the form that TensorRT takes, from the scales that the data ask for."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_net import Exported, run
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import Tensor, nn

from advprune.errors import BadData, Incompatible, NotFound, Refused
from advprune.repro import seeded
from export import graph
from export.calibrate import doubts
from export.encodings import x86_form
from export.quantize import quantize
from export.rounding import round_weight
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]


def settings(node: onnx.NodeProto) -> dict:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def test_weight_codes_are_those_of_the_definition(exported: Exported):
    floats = graph.constants(graph.load(exported.float_onnx))
    constants = graph.constants(graph.load(exported.int8))
    checked = 0
    for name, weight in floats.items():
        if weight.ndim not in (2, 4) or not name.endswith(".weight"):
            continue
        scales, codes = constants[f"{name}_scale"], constants[f"{name}_quantized"]
        assert codes.dtype == np.int8 and scales.shape == (len(weight),)
        assert (scales > 0).all()
        for channel, scale, code in zip(weight, scales, codes, strict=True):
            exact = channel.astype(np.float64) / np.float64(scale)
            assert np.abs(exact - code).max() <= 0.5 + 1e-4
            if name != "5.conv1.weight":
                largest = np.abs(channel).max()
                assert scale == pytest.approx(largest / 127, rel=1e-6)
                assert np.abs(code).max() == 127
                np.testing.assert_array_equal(code, np.rint(channel / scale).astype(np.int8))
            checked += 1
        np.testing.assert_array_equal(codes[weight == 0], 0)
    assert checked == 16 + 16 * 2 + 24 * 4 + 10


def test_scales_equal_those_of_onnxruntime(exported: Exported, tmp_path: Path):
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = list(np.split(exported.calibration, 2))

        def get_next(self) -> dict:
            return {"images": self.batches.pop()} if self.batches else {}

    shutil.copy(exported.float_onnx, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Reader(),
        op_types_to_quantize=["Conv", "Gemm", "GlobalAveragePool"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        },
    )
    ours = graph.constants(onnx.load(exported.int8))
    theirs = graph.constants(onnx.load(tmp_path / "theirs.onnx"))
    common = [name for name in theirs if name in ours and name.endswith(("_scale", "_quantized"))]
    common = [name for name in common if not name.startswith("5.conv1.weight")]
    assert len(common) >= 12 + 7
    for name in common:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_form_is_what_tensorrt_takes(exported: Exported):
    model = graph.load(exported.int8)
    constants, producers = graph.constants(model), graph.producers(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
            assert (constants[node.input[1]] > 0).all()
        if node.op_type in ("Conv", "Gemm"):
            activation, weight = (producers[name] for name in node.input[:2])
            assert activation.op_type == weight.op_type == "DequantizeLinear"
            assert weight.input[0] in constants and settings(weight)["axis"] == 0
            assert constants[node.input[2]].dtype == np.float32
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(sums) == 3
    for node in sums:
        assert {producers[name].op_type for name in node.input} == {"DequantizeLinear"}
    assert producers["logits"].op_type == "Gemm"
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    readers = graph.consumers(model)
    assert [node.op_type for node in readers[pool.output[0]]] == ["QuantizeLinear"]
    # Moving codes must not change them: maximum pooling and reshaping share the scale.
    for node in model.graph.node:
        if node.op_type in ("MaxPool", "Reshape", "Flatten"):
            (after,) = readers[node.output[0]]
            assert after.op_type == "QuantizeLinear"
            assert after.input[1] == producers[node.input[0]].input[1]
    # Normalisation comes before the first rounding.
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.index("Div") < kinds.index("QuantizeLinear")


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_logits_stay_close_and_bytes_repeat(exported: Exported, tmp_path: Path, method, capfd):
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    quantize(exported.float_onnx, exported.calibration, first, method)
    quantize(exported.float_onnx, exported.calibration, second, method)
    assert first.read_bytes() == second.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in exported.float_onnx.parent.iterdir()) == [
        "camera.onnx",
        "float.onnx",
        "int8.onnx",
        "x86.onnx",
    ]
    expected = run(exported.float_onnx, exported.images)
    got = run(first, exported.images)
    assert 0 < np.abs(got - expected).max() < 0.3 * expected.std()
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.95


def test_bytes_do_not_depend_on_the_hash_seed(exported: Exported, tmp_path: Path):
    np.save(tmp_path / "images.npy", exported.calibration)
    code = (
        "import sys, numpy; from pathlib import Path; from export.quantize import quantize; "
        "quantize(Path(sys.argv[1]), numpy.load(sys.argv[2]), Path(sys.argv[3]))"
    )
    out = tmp_path / "other.onnx"
    subprocess.run(
        [sys.executable, "-c", code, exported.float_onnx, tmp_path / "images.npy", out],
        check=True,
        env={"PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parents[1],
    )
    assert out.read_bytes() == exported.int8.read_bytes()


def test_the_standard_gives_the_same_logits(exported: Exported):
    # An independent implementation of every operator, from the ONNX project.
    evaluator = ReferenceEvaluator(str(exported.int8))
    images = exported.images[:4]
    expected = np.asarray(next(iter(evaluator.run(None, {"images": images}))), np.float32)
    np.testing.assert_allclose(run(exported.int8, images), expected, atol=1e-4)


def test_dead_channels_answer_with_their_bias_on_every_engine(exported: Exported):
    constants = graph.constants(graph.load(exported.int8))
    floats = graph.constants(graph.load(exported.float_onnx))
    scales, bias = constants["5.conv1.weight_scale"], constants["5.conv1.weight_bias"]
    codes = constants["5.conv1.weight_quantized"]
    assert not codes[[2, 5, 9]].any()
    assert scales[5] == 1.0 and bias[5] == 0.0
    for channel in (2, 9):
        # Rounded to a multiple of step * scale, as integer kernels do, it is the bias still.
        original = floats["5.conv1.weight_bias"][channel]
        assert abs(original) > 0.01
        assert bias[channel] == pytest.approx(original, rel=1e-6)
        step = constants[_step_name(exported, "5.conv1.weight")]
        assert abs(bias[channel] / (np.float64(step) * scales[channel])) < 2**31


def _step_name(exported: Exported, weight: str) -> str:
    model = graph.load(exported.int8)
    producers = graph.producers(model)
    node = next(n for n in model.graph.node if n.input[1:2] == [f"{weight}_dequantized"])
    return producers[node.input[0]].input[1]


def test_biases_lie_on_the_integer_grid(exported: Exported):
    model = graph.load(exported.int8)
    constants, producers = graph.constants(model), graph.producers(model)
    floats = graph.constants(graph.load(exported.float_onnx))
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            step = constants[producers[node.input[0]].input[1]].astype(np.float64)
            grid = step * constants[producers[node.input[1]].input[1]]
            units = constants[node.input[2]] / grid
            assert (np.abs(units - np.rint(units)) <= 1e-3 + np.abs(units) * 2**-23).all()
            if node.input[2] in floats:
                gap = np.abs(constants[node.input[2]] - floats[node.input[2]])
                assert (gap <= grid / 2 + np.abs(floats[node.input[2]]) * 2**-22).all()


def test_weight_of_any_axis():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3)).astype(np.float32)
    weight[:, 1] = 0
    rounded = round_weight(torch.from_numpy(weight), 1, torch.tensor(0.1), torch.zeros(3))
    codes, scales = (value.numpy() for value in rounded)
    np.testing.assert_allclose(scales, [np.abs(weight[:, 0]).max() / 127, 1, scales[2]], rtol=1e-6)
    np.testing.assert_allclose(codes * scales, weight, atol=float(scales[[0, 2]].max()) / 2 + 1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30])
@pytest.mark.parametrize("bias", [0.0, 1e-40, 0.5])
@pytest.mark.parametrize("step", [1e-3, 50.0])
def test_nearly_dead_channels_have_normal_scales(size: float, bias: float, step: float):
    weight = np.full((1, 4), size, np.float32)
    factor = np.array(step, np.float32)
    rounded = round_weight(
        torch.from_numpy(weight), 0, torch.tensor(factor), torch.full((1,), bias)
    )
    codes, scales = (value.numpy() for value in rounded)
    tiny = np.finfo(np.float32).tiny
    assert scales[0] >= tiny and factor * scales[0] >= tiny
    assert abs(bias / (np.float64(factor) * scales[0])) < 2**31
    assert np.abs(codes * scales[0] - weight).max() * step * 127 <= max(abs(bias), 1e-30) * 1e-3


def test_module_called_twice_and_network_that_ends_in_pooling(tmp_path: Path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(torch.relu(self.conv(x))))
            return x.mean((2, 3))

    with seeded(0, "twice"):
        net = Twice()
    files = [tmp_path / f"{name}.onnx" for name in ("float", "int8", "x86")]
    to_onnx(net, (4, 6, 6), files[0])
    images = np.random.default_rng(0).random((128, 4, 6, 6), dtype=np.float32)
    quantize(files[0], images, files[1])
    graph.save(x86_form(graph.load(files[1])), files[2])
    expected, int8, x86 = (run(path, images) for path in files)
    np.testing.assert_array_equal(int8, x86)
    assert 0 < np.abs(int8 - expected).max() < 0.02 * np.abs(expected).max()
    # Pooled features are the logits here, and logits stay float.
    assert len(np.unique(int8)) > 256
    model = graph.load(files[1])
    assert graph.producers(model)["logits"].op_type == "Flatten"
    assert graph.quantisation_nodes(model) == 2 * 3 + 2


def test_all_zero_layers_quantise(exported: Exported, tmp_path: Path):
    model = graph.load(exported.float_onnx)
    values = graph.constants(model)
    graph.put_constants(
        model,
        {n: np.zeros_like(v) for n, v in values.items() if n.startswith("5.conv1.weight")},
    )
    graph.save(model, tmp_path / "zero.onnx")
    for method in ("minmax", "entropy", "percentile"):
        quantize(tmp_path / "zero.onnx", exported.calibration, tmp_path / "out.onnx", method)
        constants = graph.constants(graph.load(tmp_path / "out.onnx"))
        assert all((v > 0).all() for n, v in constants.items() if n.endswith("_scale"))
        assert np.isfinite(run(tmp_path / "out.onnx", exported.images)).all()


def spoil(images: np.ndarray, what: str) -> np.ndarray:
    images = images.copy()
    match what:
        case "few":
            return images[:127]
        case "nan":
            images[3, 0, 2, 2] = np.nan
        case "infinite":
            images[3, 0, 2, 2] = np.inf
        case "large":
            images *= 255
        case "negative":
            images[0, 0, 0, 0] = -0.01
        case "constant":
            images[:] = 0.5
        case "double":
            return images.astype(np.float64)
        case "flat":
            return images.reshape(len(images), -1)
    return images


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("few", "127 images are too few; give at least 128"),
        ("nan", "not finite"),
        ("infinite", "not finite"),
        ("large", r"must lie in \[0, 1\]"),
        ("negative", r"must lie in \[0, 1\]"),
        ("constant", "every pixel is 0.5"),
        ("double", "float64"),
        ("flat", "need float32"),
    ],
)
def test_bad_calibration_is_refused(exported: Exported, tmp_path: Path, what: str, message: str):
    with pytest.raises(BadData, match=message) as caught:
        quantize(exported.float_onnx, spoil(exported.calibration, what), tmp_path / "out.onnx")
    assert caught.value.exit_code == 65 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_bad_graphs_are_refused(exported: Exported, tmp_path: Path):
    out = tmp_path / "out.onnx"
    count = graph.quantisation_nodes(graph.load(exported.int8))
    with pytest.raises(Incompatible, match=rf"already quantised \({count} Q/DQ nodes\)"):
        quantize(exported.int8, exported.calibration, out)
    with pytest.raises(NotFound):
        quantize(tmp_path / "none.onnx", exported.calibration, out)
    with pytest.raises(Incompatible, match="calibration images are"):
        quantize(exported.float_onnx, exported.calibration[:, :, :-1], out)
    with pytest.raises(Refused, match="'max' is not known"):
        quantize(exported.float_onnx, exported.calibration, out, "max")  # pyright: ignore[reportArgumentType]
    model = graph.load(exported.float_onnx)
    weight = graph.constants(model)["5.conv2.weight"].copy()
    weight[0, 0, 0, 0] = np.nan
    graph.put_constants(model, {"5.conv2.weight": weight})
    graph.save(model, tmp_path / "nan.onnx")
    with pytest.raises(BadData, match=r"5\.conv2\.weight holds values that are not finite"):
        quantize(tmp_path / "nan.onnx", exported.calibration, out)
    assert not out.exists()


def test_doubtful_calibration_is_told(exported: Exported):
    images = exported.calibration
    mean, deviation = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
    assert doubts(images, mean, deviation) == ["150 calibration images, fewer than 512"]
    enough = np.concatenate([images] * 4)
    assert doubts(enough, mean, deviation) == []
    dark = enough.copy()
    dark[:, 1] *= 0.3
    (line,) = doubts(dark, mean, deviation)
    assert re.search(r"a mean of 0\.15 in channel 1, training images 0\.50", line)


@pytest.mark.parametrize(
    "spoiled",
    [lambda x: x / 255, lambda x: x * 0.2 + 0.4, lambda x: 1 - (1 - x) / 8],
    ids=["divided twice", "flat", "bright"],
)
def test_calibration_with_other_statistics_is_refused(exported: Exported, spoiled: Callable):
    images = exported.calibration
    mean, deviation = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
    doubts(images, mean, deviation)
    one = images.copy()
    one[:, 2] = spoiled(one[:, 2])
    with pytest.raises(
        BadData, match=r"channel 2 has a mean of .*, in training images 0"
    ) as caught:
        doubts(one, mean, deviation)
    assert caught.value.exit_code == 65 and "\n" not in str(caught.value)


def test_what_is_reshaped_and_pooled_without_an_image_is_passed_over(tmp_path: Path):
    """As the table of relative positions in torchvision's `swin_t`."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        positions (float[batch, 1, 4, 4] images) => (float[batch, 16] logits)
        <float[16] table = {0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
         float[1, 1, 4, 4] map = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
         int64[4] square = {1, 1, 4, 4}> {
            moved = Reshape(table, square)
            pooled = GlobalAveragePool(map)
            shifted = Add(images, moved)
            both = Add(shifted, pooled)
            logits = Flatten(both)
        }"""
    )
    onnx.save(model, tmp_path / "float.onnx")
    images = np.random.default_rng(0).random((128, 1, 4, 4), dtype=np.float32)
    quantize(tmp_path / "float.onnx", images, tmp_path / "int8.onnx")
    expected, got = (run(tmp_path / f"{name}.onnx", images) for name in ("float", "int8"))
    # Half a step of each rounding: of the images, the table, their sum and the pooled map.
    assert 0 < np.abs(got - expected).max() <= (1 + 15 + 16 + 7.5) / 127 / 2 + 1e-5
