"""Promise: the forms for x86, OpenVINO and cameras compute one function, bit for bit."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_net import SHAPE, Exported, run, saturates
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from advprune.errors import Incompatible
from deploy.runtime import load
from export import graph
from export.encodings import openvino_form, uint8_head, x86_form
from export.quantize import quantize
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]


def test_logits_are_the_same_bits(exported: Exported):
    tensorrt, x86 = (run(path, exported.images) for path in (exported.int8, exported.x86))
    assert tensorrt.std() > 0.1
    np.testing.assert_array_equal(tensorrt, x86)


def test_images_far_outside_the_calibration_saturate_alike(exported: Exported):
    images = np.random.default_rng(1).uniform(-50, 50, (16, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(run(exported.int8, images), run(exported.x86, images))


def test_random_scales_give_the_same_bits(exported: Exported, tmp_path: Path):
    rng = np.random.default_rng(2)
    model = graph.load(exported.int8)
    scales = {
        name: (value * 10 ** rng.uniform(-1, 1, value.shape)).astype(np.float32)
        for name, value in graph.constants(model).items()
        if name.endswith("_scale")
    }
    graph.put_constants(model, scales)
    graph.save(model, tmp_path / "tensorrt.onnx")
    graph.save(x86_form(model), tmp_path / "x86.onnx")
    tensorrt = run(tmp_path / "tensorrt.onnx", exported.images)
    np.testing.assert_array_equal(tensorrt, run(tmp_path / "x86.onnx", exported.images))


def test_fused_integers_agree_with_the_graph_as_written(exported: Exported):
    images = np.random.default_rng(3).random((512, *SHAPE), dtype=np.float32)
    written, fused = run(exported.x86, images), run(exported.x86, images, optimise=True)
    assert np.mean(np.abs(written - fused).max(axis=1) > 1e-5) < 0.1
    assert np.mean(written.argmax(1) == fused.argmax(1)) >= 0.99


def test_large_sums_are_exact_whatever_the_processor(tmp_path: Path):
    """Of large codes and weights: 16 bits hold no two products, and some kernels add two there."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    net.append(nn.Linear(8 * 8 * 8, 10))
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, 0.01, 0.012, generator=torch.Generator().manual_seed(0))
    images = np.random.default_rng(4).uniform(0.9, 1.0, (128, *SHAPE)).astype(np.float32)
    files = [tmp_path / f"{name}.onnx" for name in ("float", "int8", "x86")]
    to_onnx(net, SHAPE, files[0])
    quantize(files[0], images, files[1])
    graph.save(x86_form(graph.load(files[1])), files[2])
    written = run(files[1], images)
    assert np.abs(load(files[2]).predict(images) - written).max() <= 1e-3 * np.abs(written).max()


def test_codes_are_uint8_around_128_and_clipped_after_rounding(exported: Exported):
    model = graph.load(exported.x86)
    constants, producers = graph.constants(model), graph.producers(model)
    kinds = [node.op_type for node in model.graph.node]
    assert "Relu" not in kinds and "Clip" not in kinds and kinds.count("Max") == 7
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            bias = producers[node.input[2]]
            assert constants[bias.input[0]].dtype == np.int32
            continue
        zero = constants.get([*node.input, "", ""][2]) if node.op_type.endswith("Linear") else None
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in producers
        ):
            assert zero is not None and zero.dtype == np.uint8 and zero == 128
        elif zero is not None:  # a weight
            assert zero.dtype == np.int8 and not zero.any()


def test_the_original_is_left_alone(exported: Exported):
    model = graph.load(exported.int8)
    before = model.SerializeToString(deterministic=True)
    x86_form(model)
    openvino_form(model)
    uint8_head(model)
    assert model.SerializeToString(deterministic=True) == before


def chain(low: float | None, high: float | None, scale: float) -> onnx.ModelProto:
    """images -> Clip or Relu -> Quantize -> Dequantize -> logits."""
    bounds = {"low": low, "high": high}
    names = [name if bound is not None else "" for name, bound in bounds.items()]
    clip = helper.make_node("Clip", ["images", *names], ["clipped"])
    nodes = [
        clip,
        helper.make_node("QuantizeLinear", ["clipped", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["logits"]),
    ]
    constants = {name: np.float32(b) for name, b in bounds.items() if b is not None}
    constants |= {"scale": np.float32(scale), "zero": np.int8(0)}
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("images", "logits")
    ]
    tensors = [numpy_helper.from_array(np.array(v), n) for n, v in constants.items()]
    body = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@settings(max_examples=40, deadline=None)
@given(
    low=st.none() | st.floats(-8, 0, width=32),
    high=st.none() | st.floats(0, 8, width=32),
    scale=st.floats(2**-10, 2, width=32),
)
def test_clipping_codes_is_clipping_values(
    tmp_path_factory: pytest.TempPathFactory, low: float, high: float, scale: float
):
    folder = tmp_path_factory.mktemp("chain")
    model = chain(low, high, scale)
    # All ties of the rounding, the bounds, and what lies between and beyond.
    ties = (np.arange(-300, 300) / 2 * np.float32(scale)).astype(np.float32)
    values = np.concatenate([ties, np.linspace(-20, 20, 999, dtype=np.float32)])
    graph.save(model, folder / "tensorrt.onnx")
    graph.save(x86_form(model), folder / "x86.onnx")
    expected = run(folder / "tensorrt.onnx", values)
    np.testing.assert_array_equal(expected, run(folder / "x86.onnx", values))


def test_camera_head_gives_the_same_bits_on_8_bit_images(exported: Exported, tmp_path: Path):
    pixels = np.rint(exported.images * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels.astype(np.float32) / 255, exported.images)
    frames = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    for path in (exported.float_onnx, exported.int8, exported.x86):
        graph.save(uint8_head(graph.load(path)), tmp_path / "camera.onnx")
        expected, got = run(path, exported.images), run(tmp_path / "camera.onnx", frames)
        np.testing.assert_array_equal(expected, got)
    entry = onnx.load(tmp_path / "camera.onnx").graph.input[0]
    dims = [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    assert (entry.name, dims) == ("images", ["batch", *SHAPE[1:], SHAPE[0]])


def test_wrong_graphs_are_refused(exported: Exported):
    for path in (exported.float_onnx, exported.x86):
        with pytest.raises(Incompatible, match="need a graph with int8 activations"):
            x86_form(graph.load(path))
    with pytest.raises(Incompatible, match="need a graph that takes float32"):
        uint8_head(graph.load(exported.camera))


def test_an_image_has_the_same_logits_in_every_batch(exported: Exported):
    together = run(exported.x86, exported.images, optimise=True)
    alone = [run(exported.x86, image[None], optimise=True) for image in exported.images]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.skipif(saturates(), reason="OpenVINO's sums saturate on x86 without VNNI")
def test_openvino_rounds_what_is_added(exported: Exported, tmp_path: Path):
    """Left to itself it adds results of convolutions before they are rounded."""
    path = tmp_path / "openvino.onnx"
    model = graph.load(exported.int8)
    graph.save(openvino_form(model), path)
    images = np.random.default_rng(3).random((256, *SHAPE), dtype=np.float32)
    written = run(exported.int8, images)
    np.testing.assert_array_equal(run(path, images), written)

    added = [n for n in graph.load(path).graph.node if n.op_type == "Max"]
    # Two blocks, the second with a convolution on its shortcut; and the preactivated one.
    assert len(added) == 4
    held, plain = (
        np.abs(load(file, runtime="openvino").predict(images) - written)
        for file in (path, exported.int8)
    )
    assert plain.mean() > 20 * held.mean()
    assert np.mean(held.max(axis=1) > 1e-5) < 0.35
    primitives = load(path, runtime="openvino").primitives()  # pyright: ignore
    # Signed or not, as the processor has it.
    assert primitives.get("Convolution u8", primitives.get("Convolution i8")) == 7
    assert "Convolution f32" not in primitives
