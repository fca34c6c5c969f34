"""Promise: one builder source for TensorRT 10.3 to 11, and a clear word where there is none."""

import json
import sys
import types
from pathlib import Path

import pytest
from exported_net import SHAPE, Exported
from tensorrt_builder import TensorRT

from advprune.errors import BadData, CannotCreate, Incompatible, NotFound
from deploy.errors import DeployError
from deploy.runtimes.device_memory import Gpu
from export import graph
from export.engine_card import BuildOptions
from export.patterns import groups_of_four
from export.to_tensorrt import Built, Skipped, build_engine
from pipeline import engine as pipeline_engine

pytest_plugins = ["export_fixtures"]

EIGHT = BuildOptions(max_batch=8)
ORIN = Gpu(0, "Orin", "8.7")


@pytest.fixture(params=[("10.3.0", 1), ("11.4.0", 0)], ids=["10.3", "11.4"])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    fake = TensorRT(*request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def test_engine_is_built_for_its_batches(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out = tmp_path / "int8.plan"
    built = build_engine(exported.int8, out, SHAPE, BuildOptions(32, optimal_batch=4), ORIN)
    beside = tmp_path / "int8.plan.json", tmp_path / "int8.plan.timing"
    assert built == Built(out, *beside, tensorrt.__version__)
    assert out.read_bytes() == b"engine"
    calls = tensorrt.calls
    assert calls["flags"] == 1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert calls["cleared"] is tensorrt.BuilderFlag.TF32
    assert calls["profile"] == ("images", (1, *SHAPE), (4, *SHAPE), (32, *SHAPE))
    assert calls["bytes"] == exported.int8.read_bytes()
    assert calls["config"].profiling_verbosity is tensorrt.ProfilingVerbosity.DETAILED


def test_engine_fits_this_machine_unless_it_is_asked_to_fit_more(
    exported: Exported, tensorrt: TensorRT, tmp_path: Path
):
    out, calls = tmp_path / "int8.plan", tensorrt.calls
    build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    assert "set" not in calls and calls["host code"] is False
    assert not hasattr(calls["config"], "hardware_compatibility_level")
    wide = BuildOptions(8, version_compatible=True, hardware_compatible=True)
    build_engine(exported.int8, out, SHAPE, wide, ORIN)
    assert calls["set"] == [tensorrt.BuilderFlag.VERSION_COMPATIBLE]
    level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert calls["config"].hardware_compatibility_level is level
    # An engine that brings its own runtime opens only where host code is allowed.
    assert calls["host code"] is True
    card = json.loads((tmp_path / "int8.plan.json").read_text())
    assert card["version_compatible"] and card["hardware_compatible"]


def test_sparse_kernels_are_asked_for_where_the_file_is_2_to_4(
    exported: Exported, tensorrt: TensorRT, tmp_path: Path
):
    build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, EIGHT, ORIN)
    assert "set" not in tensorrt.calls
    model = graph.load(exported.int8)
    pruned = {}
    for name in groups_of_four(exported.int8):
        codes = graph.constants(model)[f"{name}_quantized"].copy()
        codes[:, 1::4] = codes[:, 2::4] = 0
        pruned[f"{name}_quantized"] = codes
    last = [*pruned][-1]
    sparse, broken = tmp_path / "sparse.onnx", tmp_path / "broken.onnx"
    graph.put_constants(model, pruned)
    graph.save(model, sparse)
    build_engine(sparse, tmp_path / "sparse.plan", SHAPE, EIGHT, ORIN)
    assert tensorrt.calls.pop("set") == [tensorrt.BuilderFlag.SPARSE_WEIGHTS]
    # One group with three non-zeros, in the last of the layers.
    pruned[last][0, :4] = 1, 1, 1, 0
    graph.put_constants(model, pruned)
    graph.save(model, broken)
    build_engine(broken, tmp_path / "broken.plan", SHAPE, EIGHT, ORIN)
    assert "set" not in tensorrt.calls


def test_timings_are_kept_and_used_again(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out, cache = tmp_path / "int8.plan", tmp_path / "int8.plan.timing"
    build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    assert cache.read_bytes() == b"+timings"
    build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    assert cache.read_bytes() == b"+timings+timings"
    tensorrt.cache_fits = False
    build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    assert cache.read_bytes() == b"+timings"


def test_what_tensorrt_refuses_is_told(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out = tmp_path / "int8.plan"
    tensorrt.can_parse = False
    with pytest.raises(
        Incompatible, match=r"cannot read it .QuantizeLinear relu_quantize: scale must be positive"
    ):
        build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    tensorrt.can_parse, tensorrt.can_finish = True, False
    with pytest.raises(Incompatible, match=r"built nothing .no implementation for node Conv_0"):
        build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    tensorrt.can_finish, tensorrt.can_open = True, False
    with pytest.raises(Incompatible, match=r"does not open what it built .*out of memory"):
        build_engine(exported.int8, out, SHAPE, EIGHT, ORIN)
    assert not list(tmp_path.iterdir())
    tensorrt.can_open = True
    with pytest.raises(CannotCreate):
        build_engine(exported.int8, tmp_path / "none" / "int8.plan", SHAPE, EIGHT, ORIN)


def test_machine_without_gpu_is_skipped(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    tensorrt.can_build = False
    result = build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, EIGHT, ORIN)
    assert isinstance(result, Skipped)
    assert "CUDA initialization failure" in result.reason and "chatter" not in result.reason
    assert "pip install 'tensorrt>=10.3'" in result.reason


def test_machine_without_tensorrt_is_skipped(exported: Exported, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, EIGHT, ORIN)
    assert isinstance(result, Skipped)
    assert "cannot be imported" in result.reason
    assert "pip install 'tensorrt>=10.3'" in result.reason
    assert not list(tmp_path.iterdir())


def test_pipeline_tells_the_builder_its_gpu_or_skips(
    exported: Exported, tensorrt: TensorRT, monkeypatch, tmp_path: Path
):
    def no_gpu():
        raise DeployError("gpu: none; pip install tensorrt", 69)

    out = tmp_path / "model.plan"
    monkeypatch.setattr(pipeline_engine, "open_device", no_gpu)
    skipped = pipeline_engine.build_here(exported.int8, out, SHAPE, EIGHT)
    assert skipped == Skipped("gpu: none; pip install tensorrt") and not tensorrt.calls
    device = types.SimpleNamespace(gpu=Gpu(1, "Thor", "11.0"))
    monkeypatch.setattr(pipeline_engine, "open_device", lambda: device)
    built = pipeline_engine.build_here(exported.int8, out, SHAPE, EIGHT)
    assert isinstance(built, Built)
    card = json.loads(built.card.read_text())
    assert (card["gpu"], card["compute_capability"]) == ("Thor", "11.0")


def test_wrong_input_is_refused_even_without_tensorrt(exported: Exported, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "out.plan"
    with pytest.raises(Incompatible, match=r"uint8.* codes"):
        build_engine(exported.x86, out, SHAPE, EIGHT, ORIN)
    for options in (BuildOptions(0), BuildOptions(4, optimal_batch=5), BuildOptions(4, 0)):
        wrong = f"got optimal_batch {options.optimal_batch} and max_batch {options.max_batch}"
        with pytest.raises(Incompatible, match=f"1 <= optimal_batch <= max_batch, {wrong}"):
            build_engine(exported.int8, out, SHAPE, options, ORIN)
    with pytest.raises(NotFound):
        build_engine(tmp_path / "none.onnx", out, SHAPE, EIGHT, ORIN)
    (tmp_path / "text.onnx").write_bytes(b"no model")
    with pytest.raises(BadData):
        build_engine(tmp_path / "text.onnx", out, SHAPE, EIGHT, ORIN)
