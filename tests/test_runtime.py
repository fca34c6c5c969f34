"""Promise: a file answers images like the network it came from, or says in one line why not."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from biased_graph import divided_by, write_graph
from exported_net import CLASSES, SHAPE, Exported, make_net, run
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.errors import DeployError
from deploy.runtime import EdgeModel, load
from deploy.runtimes.ort import OrtModel
from deploy.runtimes.torchrt import TorchModel

pytest_plugins = ["export_fixtures"]


def refusal(code: int, match: str):
    return pytest.raises(DeployError, match=match, check=lambda error: error.exit_code == code)


@pytest.mark.parametrize(
    ("form", "precision", "entry"),
    [
        ("float_onnx", "fp32", "float32 NCHW"),
        ("int8", "int8", "float32 NCHW"),
        ("x86", "int8", "float32 NCHW"),
        ("camera", "int8", "uint8 NHWC"),
    ],
)
def test_info_is_read_from_the_file(exported: Exported, form: str, precision: str, entry: str):
    path: Path = getattr(exported, form)
    info = load(path).info
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.precision, info.input) == (precision, entry)
    assert (info.shape, info.classes) == (SHAPE, CLASSES)
    assert (info.runtime, info.device, info.threads) == ("onnxruntime", "cpu", 1)
    assert info.providers == ("CPUExecutionProvider",)
    assert info.version == onnxruntime.__version__


def test_predict_is_the_engine(exported: Exported):
    for path in (exported.float_onnx, exported.int8, exported.x86):
        expected = run(path, exported.images, optimise=True)
        got = load(path).predict(exported.images)
        assert got.dtype == np.float32 and got.shape == (len(exported.images), CLASSES)
        np.testing.assert_array_equal(got, expected)


def test_camera_engine_sees_pixels_rounded_half_to_even(exported: Exported):
    model, twin = load(exported.camera), load(exported.x86)
    rng = np.random.default_rng(0)
    images = rng.random((8, *SHAPE), dtype=np.float32)
    pixels = np.round(images.astype(np.float64) * 255).astype(np.uint8)
    frames = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    got = model.predict(images)
    np.testing.assert_array_equal(got, run(exported.camera, frames, optimise=True))
    np.testing.assert_array_equal(model.predict(exported.images), twin.predict(exported.images))
    # 0.5 is 127.5 of 255 steps, half-way: the even neighbour is 128; 0.5/255 goes down to 0.
    for value, pixel in ((0.5, 128), (0.5 / 255, 0), (1.0, 255), (1.5 / 255, 2)):
        flat = np.full((1, *SHAPE), value, np.float32)
        frame = np.full((1, *SHAPE[1:], SHAPE[0]), pixel, np.uint8)
        np.testing.assert_array_equal(
            model.predict(flat), run(exported.camera, frame, optimise=True)
        )


@pytest.mark.parametrize("count", [1, 3, 1024, 1025, 2100])
def test_any_number_of_images(exported: Exported, count: int):
    model = load(exported.x86)
    images = np.resize(exported.images, (count, *SHAPE))
    # Integer kernels give each image the same bits in every batch.
    expected = np.resize(model.predict(exported.images), (count, CLASSES))
    np.testing.assert_array_equal(model.predict(images), expected)


def test_torch_model_is_a_snapshot_of_the_network(exported: Exported):
    net = make_net().train()
    model: EdgeModel = TorchModel(net, SHAPE)
    assert net.training
    expected = load(exported.float_onnx).predict(exported.images)
    np.testing.assert_allclose(model.predict(exported.images), expected, atol=1e-5)
    info = model.info
    assert (info.runtime, info.precision, info.shape, info.classes) == ("torch", "fp32", SHAPE, 10)
    assert TorchModel(make_net(), SHAPE).info.sha256 == info.sha256
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    np.testing.assert_allclose(model.predict(exported.images), expected, atol=1e-5)
    assert TorchModel(net, SHAPE).info.sha256 != info.sha256
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.fixture(params=["onnx", "torch"])
def model(request: pytest.FixtureRequest, exported: Exported) -> EdgeModel:
    if request.param == "onnx":
        return load(exported.camera)
    return TorchModel(exported.net, SHAPE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.astype(np.float64), "float64"),
        (lambda x: (x * 255).astype(np.uint8), "uint8"),
        (lambda x: x[0], "need float32"),
        (lambda x: x[:0], r"N >= 1, got float32 \(0"),
        (lambda x: x[:, :, :-1], "need float32"),
        (lambda x: x.transpose(0, 2, 3, 1), "need float32"),
        (lambda x: x * np.float32(1.001) + np.float32(0.001), "lie in"),
        (lambda x: x - np.float32(0.01), "lie in"),
        (lambda x: np.where(x > 0.9, np.float32(np.nan), x), "must be finite"),
        (lambda x: np.where(x > 0.9, np.float32(np.inf), x), "must be finite"),
    ],
)
def test_what_is_no_image_is_refused(model: EdgeModel, exported: Exported, spoil, message: str):
    with refusal(65, message) as caught:
        model.predict(spoil(exported.images))
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_are_refused(tmp_path: Path):
    images = np.full((3, 2, 4, 4), 0.5, np.float32)
    good = load(write_graph(tmp_path / "good.onnx", np.array([1.0, 2.0])))
    np.testing.assert_array_equal(good.predict(images), np.full((3, 2), [1.5, 2.5]))
    bad = load(divided_by(tmp_path / "bad.onnx", np.array([1.0, 0.0])))
    with refusal(65, r"bad\.onnx: gave logits that are not finite"):
        bad.predict(images)

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / 0.0

    with refusal(65, "Broken: gave logits that are not finite"):
        TorchModel(Broken(), (2, 4, 4)).predict(images)


def test_files_are_refused_by_kind(exported: Exported, tmp_path: Path):
    with refusal(66, "no such file"):
        load(tmp_path / "none.onnx")
    with refusal(66, "cannot be read"):
        load(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"x")
    with refusal(65, r"no runtime for '\.pt'"):
        load(tmp_path / "model.pt")
    for name, data in (
        ("empty", b""),
        ("text", b"not a model"),
        ("torn", exported.x86.read_bytes()[:-999]),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with refusal(65, f"{name}.onnx: not an ONNX file") as caught:
            load(path)
        assert "\n" not in str(caught.value)
        # What the runtime itself says is told in one line, too.
        with refusal(65, "not a model that onnxruntime runs") as caught:
            OrtModel(data, str(path), threads=1)
        assert "\n" not in str(caught.value)


def test_graphs_without_images_or_free_batch_are_refused(tmp_path: Path):
    with refusal(65, "free batch"):
        load(write_graph(tmp_path / "frozen.onnx", np.zeros(2), batch=1))
    model = onnx.load(write_graph(tmp_path / "good.onnx", np.zeros(2)))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["x"], to=1))
    model.graph.node[1].input[0] = "x"
    onnx.save(model, tmp_path / "double.onnx")
    with refusal(65, "need one input"):
        load(tmp_path / "double.onnx")


def test_no_file_beside_the_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for place in (folder, tmp_path):
        np.arange(32, dtype=np.float32).tofile(place / "secret.bin")
    for location in ("secret.bin", "../secret.bin", str(tmp_path / "secret.bin")):
        path = write_graph(folder / "thief.onnx", np.zeros(2), location=location)
        if location == "secret.bin":  # which onnxruntime by itself would read
            images = np.zeros((1, 2, 4, 4), np.float32)
            np.testing.assert_array_equal(run(path, images, optimise=True), [[7.5, 23.5]])
        with refusal(65, "'bias' lies in another file"):
            load(path)
        # Nor by whoever does not look first.
        with refusal(65, "not a model that onnxruntime runs"):
            OrtModel(path.read_bytes(), str(path), threads=1)


# Runtimes ---------------------------------------------------------------------------------------


def test_a_runtime_that_is_not_there_or_does_not_fit_is_refused(exported: Exported, tmp_path: Path):
    with refusal(2, "'tflite' is not known; use ort, ort-cuda, ort-tensorrt, openvino, tensorrt"):
        load(exported.x86, runtime="tflite")
    with refusal(65, r"x86\.onnx: tensorrt runs \.plan files; use ort, ort-cuda"):
        load(exported.x86, runtime="tensorrt")
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"an engine")
    for runtime in ("ort", "ort-cuda", "ort-tensorrt", "openvino"):
        with refusal(65, rf"model\.plan: {runtime} runs \.onnx files; use tensorrt"):
            load(plan, runtime=runtime)
    (tmp_path / "model.tflite").write_bytes(b"a model")
    with refusal(65, r"no runtime for '\.tflite' files; give \.onnx or \.plan"):
        load(tmp_path / "model.tflite")


def test_a_plan_is_opened_by_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    module = SimpleNamespace(TensorRtModel=lambda path: opened.append(path) or "the model")
    monkeypatch.setitem(sys.modules, "deploy.runtimes.tensorrt", module)
    plan = tmp_path / "model.plan"
    with refusal(66, "no such file"):
        load(plan)
    plan.write_bytes(b"an engine")
    assert load(plan) == load(plan, runtime="tensorrt") == "the model"
    assert opened == [plan, plan]


@pytest.mark.parametrize(
    ("runtime", "provider"),
    [("ort-cuda", "CUDAExecutionProvider"), ("ort-tensorrt", "TensorrtExecutionProvider")],
)
class TestGpuProviders:
    def test_a_package_without_the_provider_is_told_with_the_one_that_has_it(
        self, exported: Exported, runtime: str, provider: str
    ):
        assert provider not in onnxruntime.get_available_providers()
        with refusal(69, f"asked for {provider}, CPUExecutionProvider would run") as caught:
            load(exported.x86, runtime=runtime)
        assert "has AzureExecutionProvider, CPUExecutionProvider" in str(caught.value)
        assert "pip install onnxruntime-gpu" in str(caught.value)

    def test_nodes_that_fall_back_to_the_cpu_are_refused(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch, runtime: str, provider: str
    ):
        # As on a machine whose package has the provider and whose driver does not load.
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider])
        with (
            pytest.warns(UserWarning, match=f"'{provider}' is not in available"),
            refusal(69, f"asked for {provider}, CPUExecutionProvider would run some or all of it"),
        ):
            load(exported.float_onnx, runtime=runtime)

    def test_the_session_is_asked_for_this_provider_alone(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch, runtime: str, provider: str
    ):
        asked = record_sessions(monkeypatch, [provider, "CPUExecutionProvider"])
        info = load(exported.int8, runtime=runtime).info
        assert (info.device, info.runtime) == ("cuda:0", "onnxruntime")
        assert info.providers == (provider, "CPUExecutionProvider")
        (call,) = asked
        assert call["providers"] == [provider]
        assert call["fallback"] == "1"
        assert call["enable_fallback"] == 0
        (options,) = call["provider_options"]
        if runtime == "ort-tensorrt":
            assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "0"
            assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == ("1", "0")

    def test_another_provider_than_asked_for_is_refused(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch, runtime: str, provider: str
    ):
        record_sessions(monkeypatch, ["CPUExecutionProvider"])
        with refusal(69, f"asked for {provider}, CPUExecutionProvider runs; this onnxruntime has"):
            load(exported.int8, runtime=runtime)


def record_sessions(monkeypatch: pytest.MonkeyPatch, providers: list[str]) -> list[dict[str, Any]]:
    """What sessions are asked for that run on the CPU and say that they run on `providers`."""
    asked = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: onnxruntime.SessionOptions, **given: Any):
        fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        asked.append({"fallback": fallback, **given})
        made = real(data, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: providers)
        return made

    gpus = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: gpus)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return asked


def test_another_device_than_the_cpu_is_refused(exported: Exported, monkeypatch):
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"]
    )
    with refusal(69, "asked for CPUExecutionProvider, AzureExecutionProvider runs"):
        load(exported.float_onnx)


def test_a_graph_that_computes_in_half_precision_says_so(exported: Exported, tmp_path: Path):
    path = write_graph(tmp_path / "half.onnx", np.array([1.0, 2.0]))
    model = onnx.load(path)
    nodes = model.graph.node
    nodes.insert(0, helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16))
    nodes[1].input[0] = "x"
    nodes[-1].output[0] = "halves"
    nodes.append(helper.make_node("Cast", ["halves"], ["logits"], to=TensorProto.FLOAT))
    (bias,) = model.graph.initializer
    half = numpy_helper.to_array(bias).astype(np.float16)
    bias.CopyFrom(numpy_helper.from_array(half, "bias"))
    onnx.save(model, path)
    assert load(path).info.precision == "fp16"
    np.testing.assert_array_equal(
        load(path).predict(np.full((2, 2, 4, 4), 0.5, np.float32)), np.full((2, 2), [1.5, 2.5])
    )
    # Eight bits win: what a quantised graph keeps in halves does not make it a half-precision one.
    mixed = onnx.load(exported.int8)
    mixed.graph.node.append(
        helper.make_node("Cast", ["images"], ["unused"], to=TensorProto.FLOAT16)
    )
    onnx.save(mixed, tmp_path / "mixed.onnx")
    assert load(tmp_path / "mixed.onnx").info.precision == "int8"


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_missing_package_names_the_command(exported: Exported, package: str):
    code = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from pathlib import Path\n"
        "from deploy.errors import DeployError\n"
        "from deploy.runtime import load\n"
        "try: load(Path(sys.argv[1]))\n"
        "except DeployError as error: sys.exit(f'{error.exit_code} {error}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, exported.x86, package],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"69 {package} is missing; type: pip install {package}\n"


def test_device_needs_neither_torch_nor_the_science(exported: Exported):
    code = (
        "import sys\n"
        "for name in ('torch', 'advprune', 'export'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "import deploy.bench, deploy.runtimes.ort\n"
        "from deploy.runtime import load\n"
        "model = load(Path(sys.argv[1]))\n"
        "images = np.zeros((2, *model.info.shape), np.float32)\n"
        "assert model.predict(images).shape == (2, 10)\n"
        "found = deploy.bench.latency(model, images, warmup_s=0, calls=3)\n"
        "assert found.p50_ms > 0\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, exported.camera],
        cwd=Path(__file__).parents[1],
        check=True,
    )
