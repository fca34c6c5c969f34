"""Promise: a bundle's script builds its engine on the device, from the graph that was shipped."""

import ctypes
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edge_bundle import contents, write_bundle
from exported_net import CLASSES, SHAPE, Exported
from tensorrt_builder import DataType, Layer, LayerType, Tensor
from tensorrt_device import TensorRT, compile_driver, use_driver

from deploy.runtimes.engine_card import read_card
from deploy.sealed import unseal
from export import build_engine

pytest_plugins = ["export_fixtures"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def tensorrt(driver: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    fake = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    use_driver(driver, monkeypatch)
    return fake


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "net", exported)


def build(bundle: Path, *arguments: str) -> int:
    return build_engine.main(["--onnx", str(bundle / "model.int8.onnx"), *arguments])


def test_engine_lies_beside_the_bundle_with_a_card_that_runtimes_read(
    bundle: Path, tensorrt: TensorRT, capsys: pytest.CaptureFixture[str]
):
    before = {name: path.read_bytes() for name, path in contents(bundle).items()}
    assert build(bundle) == 0
    edge = bundle.with_name("net.edge")
    assert set(contents(edge)) == {"model.plan", "model.plan.json", "model.plan.timing"}
    assert {name: path.read_bytes() for name, path in contents(bundle).items()} == before
    onnx = (bundle / "model.int8.onnx").read_bytes()
    assert unseal((edge / "model.plan.json").read_bytes()) == {
        "schema": 2,
        "sha256": hashlib.sha256(b"engine").hexdigest(),
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "tensorrt": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "platform": f"{platform.system()}/{platform.machine()}".lower(),
        "batch": {"min": 1, "optimal": 1, "max": 128},
        "version_compatible": False,
        "hardware_compatible": False,
        "input": {"name": "images", "shape": [-1, *SHAPE], "type": "float32"},
        "output": {"name": "logits", "shape": [-1, CLASSES], "type": "float32"},
        "precision": "int8",
    }
    card = read_card(edge / "model.plan", (edge / "model.plan").read_bytes())
    assert (card.input.name, card.input.shape, card.max_batch) == ("images", (-1, *SHAPE), 128)
    assert tensorrt.building.calls["bytes"] == onnx
    assert tensorrt.opened == [(b"engine", False)]
    assert f"{edge / 'model.plan'}: built on Orin" in capsys.readouterr().out


def test_options_reach_the_builder(bundle: Path, tensorrt: TensorRT, tmp_path: Path):
    wide = "--version-compatible", "--hardware-compatible"
    given = "--max-batch", "32", "--optimal-batch", "4", "--out", str(tmp_path / "a" / "b")
    assert build(bundle, *given, *wide) == 0
    calls = tensorrt.building.calls
    assert calls["profile"] == ("images", (1, *SHAPE), (4, *SHAPE), (32, *SHAPE))
    flags = tensorrt.BuilderFlag
    assert calls["set"] == [flags.VERSION_COMPATIBLE, flags.SPARSE_WEIGHTS]
    assert tensorrt.opened == [(b"engine", True)]
    card = json.loads((tmp_path / "a" / "b" / "model.plan.json").read_text())
    assert card["batch"] == {"min": 1, "optimal": 4, "max": 32}
    assert card["version_compatible"] and card["hardware_compatible"]
    assert (tmp_path / "a" / "b" / "model.plan.timing").read_bytes() == b"+timings"


def test_precision_is_read_from_the_network(bundle: Path, tensorrt: TensorRT):
    card = bundle.with_name("net.edge") / "model.plan.json"
    for kind, precision in ((DataType.HALF, "fp16"), (DataType.FLOAT, "fp32")):
        tensorrt.building.layers = [Layer(LayerType.CONVOLUTION, kind)]
        assert build(bundle) == 0
        assert json.loads(card.read_text())["precision"] == precision


def test_a_changed_graph_is_refused_before_tensorrt_sees_it(
    bundle: Path, tensorrt: TensorRT, capsys: pytest.CaptureFixture[str]
):
    graph, sums = bundle / "model.int8.onnx", bundle / "SHA256SUMS"
    whole = sums.read_text()
    for spoil in (
        lambda: graph.write_bytes(graph.read_bytes() + b" "),
        lambda: sums.write_text(whole.replace("model.int8.onnx", "model.int9.onnx")),
        lambda: sums.write_bytes(b"\xff"),
        sums.unlink,
    ):
        spoil()
        assert build(bundle) == 65
        assert "fetch the bundle again" in capsys.readouterr().err
    graph.unlink()
    assert build(bundle) == 66
    assert not tensorrt.building.calls and not contents(bundle.with_name("net.edge"))


def test_a_graph_outside_of_bundles_needs_no_digest(
    exported: Exported, tensorrt: TensorRT, tmp_path: Path
):
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copyfile(exported.int8, folder / "model.onnx")
    arguments = ["--onnx", str(folder / "model.onnx"), "--out", str(folder)]
    assert build_engine.main(arguments) == 0
    assert (folder / "model.plan").read_bytes() == b"engine"


def test_what_tensorrt_refuses_is_told(
    bundle: Path, tensorrt: TensorRT, capsys: pytest.CaptureFixture[str]
):
    two = [Tensor("images", (-1, *SHAPE), DataType.FLOAT)] * 2
    for name, value, told in (
        ("can_parse", False, "cannot read it (QuantizeLinear relu_quantize: scale must be"),
        ("can_finish", False, "built nothing (no implementation for node Conv_0)"),
        ("inputs", two, "need one input and one output"),
    ):
        kept = getattr(tensorrt.building, name)
        setattr(tensorrt.building, name, value)
        assert build(bundle) == 78
        assert told in capsys.readouterr().err
        setattr(tensorrt.building, name, kept)
    tensorrt.can_open = False
    assert build(bundle) == 78
    assert "does not open what it built (magic tag" in capsys.readouterr().err
    assert build(bundle, "--max-batch", "0") == 78
    assert not contents(bundle.with_name("net.edge"))


def test_what_is_missing_is_named(
    bundle: Path,
    tensorrt: TensorRT,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def told() -> str:
        assert build(bundle) == 69
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    tensorrt.building.can_build = False
    assert "10.3.0 cannot build here (CUDA initialization failure" in told()
    tensorrt.starts, tensorrt.building.can_build = False, True
    assert "10.3.0 does not start (CUDA initialization failure" in told()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install 'tensorrt>=10.3'" in told()
    # The C library looks at the environment of the process.
    for name in ("cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain"):
        monkeypatch.setenv("CUDA_FAILS", name)
        assert f"gpu: {name} failed (out of memory)" in told()
    monkeypatch.undo()
    monkeypatch.setattr(build_engine, "LIBCUDA", "libnone.so.1")
    assert "gpu: libnone.so.1" in told()


def test_what_cuda_has_no_words_for_has_a_number(tensorrt: TensorRT):
    gpu = build_engine.Driver()
    with pytest.raises(build_engine.Refused, match=r"cuCtxSetCurrent failed \(error 201\)"):
        gpu.call("cuCtxSetCurrent", ctypes.c_void_p(8))


def test_nothing_is_written_where_it_must_not_be(
    bundle: Path, tensorrt: TensorRT, capsys: pytest.CaptureFixture[str]
):
    for inside in (bundle, bundle / "triton" / "engines"):
        assert build(bundle, "--out", str(inside)) == 2
    assert "stays as it was shipped" in capsys.readouterr().err
    bundle.with_name("net.edge").write_text("in the way")
    assert build(bundle) == 73
    assert "give --out a folder of your own" in capsys.readouterr().err
    assert not tensorrt.building.calls


def test_the_script_runs_where_it_lies(bundle: Path, driver: Path, tmp_path: Path):
    """As a person starts it, with a driver and a package that the system finds by their names."""
    tests = Path(__file__).parent
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tensorrt.py").write_text(
        f"import sys\nsys.path.append({str(tests)!r})\nimport tensorrt_device\n"
        "sys.modules[__name__] = tensorrt_device.TensorRT()\n"
    )
    # A module of the standard library, as someone might lay it beside the script.
    (bundle / "argparse.py").write_text("raise SystemExit('taken from the bundle')\n")
    paths = {"PYTHONPATH": str(tmp_path / "package"), "LD_LIBRARY_PATH": str(driver.parent)}
    command = [sys.executable, str(bundle / "build_engine.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=paths, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert (bundle.with_name("net.edge") / "model.plan").read_bytes() == b"engine"
    assert not list(bundle.rglob("__pycache__"))
