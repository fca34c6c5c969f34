"""Promise: builder, runtime and a bundle's scripts use TensorRT 10.3, 10.16 and 11.4 as they are.

Names and call shapes are read from the published bindings, which needs the package index and a C
compiler but no GPU; so this runs only where it is asked for (`make test-tensorrt`). What TensorRT
computes is not in its bindings, and no test here shows it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from edge_bundle import write_bundle
from exported_net import CLASSES, SHAPE, Exported
from host_cuda import HostCuda
from tensorrt_contract.behaviour import Life, averages
from tensorrt_contract.install import read_bindings
from tensorrt_contract.strict import Behaviour, new, strict_module
from tensorrt_device import compile_driver, use_driver

from deploy import edge_verify
from deploy.errors import DeployError
from deploy.runtime import camera_pixels
from deploy.runtimes.device_memory import Gpu
from deploy.runtimes.tensorrt import TensorRtModel
from deploy.sealed import seal, unseal
from export import build_engine as build_script
from export import graph
from export.encodings import uint8_head
from export.engine_card import BuildOptions
from export.to_tensorrt import Built, build_engine

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.tensorrt_contract

VERSIONS = ("10.3", "10.16", "11.4")
REQUIREMENTS = Path(__file__).parent.parent / "requirements"
OPTIONS = BuildOptions(max_batch=8, optimal_batch=4)
EVERYWHERE = BuildOptions(max_batch=8, version_compatible=True, hardware_compatible=True)
ORIN = Gpu(0, "Orin", "8.7")


@dataclass(frozen=True)
class Fake:
    """A strict `tensorrt` of one version, and what happened to it."""

    trt: Any
    life: Life

    def make(self, kind: str) -> Any:
        return new(getattr(self.trt, kind))


def stand_in(surface: dict[str, Any]) -> Fake:
    behaviour: Behaviour = {}
    trt = strict_module(surface, behaviour)
    return Fake(trt, Life(trt, behaviour))


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Version -> what its bindings offer."""
    found = {}
    for version in VERSIONS:
        folder = tmp_path_factory.mktemp(f"tensorrt-{version}")
        found[version] = read_bindings(REQUIREMENTS / f"tensorrt-{version}.txt", folder)
        assert found[version]["version"].startswith(f"{version}.")
    return found


@pytest.fixture(params=VERSIONS)
def fake(
    request: pytest.FixtureRequest, surfaces: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Fake:
    made = stand_in(surfaces[request.param])
    monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", HostCuda("Orin", (8, 7)))
    return made


@pytest.fixture
def eleven(surfaces: dict[str, Any]) -> Fake:
    return stand_in(surfaces["11.4"])


def test_builder_asks_for_what_every_version_has(exported: Exported, fake: Fake, tmp_path: Path):
    built = build_engine(exported.int8, tmp_path / "model.plan", SHAPE, OPTIONS, ORIN)
    assert isinstance(built, Built) and built.version == fake.trt.__version__
    seen, flag = fake.life.seen, fake.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert seen["network"] == 1 << flag.value
    assert seen["flags"] == ["no TF32"]
    assert seen["config"]["profile"] == [[count, *SHAPE] for count in (1, 4, 8)]
    assert seen["config"]["profiling_verbosity"] == fake.trt.ProfilingVerbosity.DETAILED
    assert "hardware_compatibility_level" not in seen["config"]
    assert seen["host code"] is False
    assert built.timing_cache.read_bytes() == b"+timings"
    assert json.loads(built.card.read_text())["layers"] == {"int8": 1}
    # A second build finds the timings of the first.
    build_engine(exported.int8, tmp_path / "model.plan", SHAPE, OPTIONS, ORIN)
    assert built.timing_cache.read_bytes() == b"+timings+timings"


def test_builder_asks_for_compatible_engines(exported: Exported, fake: Fake, tmp_path: Path):
    build_engine(exported.int8, tmp_path / "model.plan", SHAPE, EVERYWHERE, ORIN)
    level = fake.trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert fake.life.seen["config"]["hardware_compatibility_level"] == level
    assert fake.life.seen["flags"] == ["no TF32", "VERSION_COMPATIBLE"]
    assert fake.life.seen["host code"] is True


@pytest.mark.parametrize("options", [OPTIONS, EVERYWHERE], ids=["this machine", "compatible"])
@pytest.mark.parametrize("form", ["float_onnx", "int8"])
def test_what_is_built_runs(
    exported: Exported, fake: Fake, tmp_path: Path, form: str, options: BuildOptions
):
    engine = tmp_path / "model.plan"
    build_engine(getattr(exported, form), engine, SHAPE, options, ORIN)
    model = TensorRtModel(engine)
    # 64 images in batches of 8, and a last batch that is smaller.
    for images in (exported.images, exported.images[:11], exported.images[:1]):
        np.testing.assert_array_equal(model.predict(images), averages(images, CLASSES))
    assert fake.life.seen["stream"] != 0
    assert fake.life.seen["host code"] is options.version_compatible
    assert model.info.providers == (f"TensorRT {fake.trt.__version__}",)
    assert (model.info.device, model.info.classes) == ("cuda:0 Orin", CLASSES)


def test_camera_engine_runs(exported: Exported, fake: Fake, tmp_path: Path):
    camera, engine = tmp_path / "camera.onnx", tmp_path / "camera.plan"
    graph.save(uint8_head(graph.load(exported.int8)), camera)
    build_engine(camera, engine, (*SHAPE[1:], SHAPE[0]), OPTIONS, ORIN)
    model = TensorRtModel(engine)
    assert (model.info.input, model.info.shape) == ("uint8 NHWC", SHAPE)
    expected = averages(camera_pixels(exported.images), CLASSES)
    np.testing.assert_array_equal(model.predict(exported.images), expected)


def test_engine_of_another_version_is_not_opened(exported: Exported, fake: Fake, tmp_path: Path):
    engine = tmp_path / "model.plan"
    built = build_engine(exported.int8, engine, SHAPE, OPTIONS, ORIN)
    assert isinstance(built, Built)
    card = unseal(built.card.read_bytes())
    built.card.write_bytes(seal(card | {"tensorrt": "10.9.0"}))
    del fake.life.seen["host code"]  # set by every engine that is opened
    with pytest.raises(DeployError, match=r"built for TensorRT 10\.9\.0, here is") as refused:
        TensorRtModel(engine)
    assert refused.value.exit_code == 78 and "host code" not in fake.life.seen


def test_what_only_the_library_makes_has_no_constructor(fake: Fake):
    logger = fake.trt.Logger(fake.trt.Logger.Severity.ERROR)
    assert isinstance(fake.trt.Builder(logger), fake.trt.Builder)
    with pytest.raises(TypeError, match="No constructor"):
        fake.trt.ICudaEngine()


@pytest.mark.parametrize("options", [[], ["--version-compatible", "--hardware-compatible"]])
def test_the_scripts_of_a_bundle_run(
    exported: Exported,
    fake: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
):
    """Both on their own: what one builds on the device, the other verifies there."""
    use_driver(compile_driver(tmp_path), monkeypatch)
    monkeypatch.setitem(sys.modules, "build_engine", ModuleType("not yet imported"))
    answers = {"int8-tensorrt": lambda images: averages(images, CLASSES)}
    bundle, edge = write_bundle(tmp_path / "net", exported, answers), tmp_path / "net.edge"
    assert edge_verify.main(["--bundle", str(bundle), "--calls", "1"]) == 0
    first = json.loads((edge / "edge.json").read_text())
    assert first["where"] == f"Orin, TensorRT {fake.trt.__version__}"
    assert first["why"].startswith("built its engine now")
    assert fake.life.seen["flags"] == ["no TF32", "SPARSE_WEIGHTS"]
    graph = str(bundle / "model.int8.onnx")
    assert build_script.main(["--onnx", graph, "--max-batch", "8", *options]) == 0
    card = json.loads((edge / "model.plan.json").read_text())
    assert (card["precision"], card["batch"]["max"]) == ("int8", 8)
    assert card["input"] == {"name": "images", "shape": [-1, *SHAPE], "type": "float32"}
    assert card["output"] == {"name": "logits", "shape": [-1, CLASSES], "type": "float32"}
    assert (edge / "model.plan.timing").read_bytes() == b"+timings+timings"
    assert edge_verify.main(["--bundle", str(bundle), "--calls", "1"]) == 0
    second = json.loads((edge / "edge.json").read_text())
    assert second["why"] == "its engine was built here before"
    assert fake.life.seen["host code"] is bool(options)
    assert second["engines"]["int8"]["agreement"] == {"clean": 1, "replay": 1}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("BuilderFlag", "INT8"), ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")],
)
def test_flags_that_went_are_caught(eleven: Fake, kind: str, name: str):
    with pytest.raises(AttributeError, match=name):
        getattr(getattr(eleven.trt, kind), name)


@pytest.mark.parametrize(
    "name",
    [
        "IInt8Calibrator",
        "IInt8EntropyCalibrator",
        "IInt8EntropyCalibrator2",
        "IInt8LegacyCalibrator",
        "IInt8MinMaxCalibrator",
    ],
)
def test_calibrators_are_caught(eleven: Fake, name: str):
    with pytest.raises(AttributeError, match=name):
        getattr(eleven.trt, name)


@pytest.mark.parametrize("name", ["int8_calibrator", "max_workspace_size"])
def test_settings_that_went_are_caught(eleven: Fake, name: str):
    with pytest.raises(AttributeError, match=name):
        setattr(eleven.make("IBuilderConfig"), name, None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("IExecutionContext", "execute_async_v2"), ("ICudaEngine", "device_memory_size")],
)
def test_members_that_went_are_caught(eleven: Fake, kind: str, name: str):
    with pytest.raises(AttributeError, match=name):
        getattr(eleven.make(kind), name)


def test_writing_to_what_is_read_only_is_caught(fake: Fake):
    with pytest.raises(AttributeError, match="num_inputs"):
        fake.make("INetworkDefinition").num_inputs = 2
    with pytest.raises(AttributeError, match="num_io_tensors"):
        fake.make("ICudaEngine").num_io_tensors = 2
    config = fake.make("IBuilderConfig")
    config.profiling_verbosity = fake.trt.ProfilingVerbosity.NONE
    assert config.profiling_verbosity == fake.trt.ProfilingVerbosity.NONE


def test_wrong_calls_are_caught(fake: Fake):
    config, flag = fake.make("IBuilderConfig"), fake.trt.BuilderFlag.TF32
    cache = fake.make("ITimingCache")
    config.set_flag(flag=flag)
    assert config.set_timing_cache(cache, ignore_mismatch=False)
    wrong = [
        lambda: config.set_flag(),
        lambda: config.set_flag(flag, flag),
        lambda: config.set_flag(bit=flag),
        lambda: config.set_flag(int(flag)),
        lambda: config.set_timing_cache(cache, ignore=False),
        lambda: config.set_timing_cache(cache, False, cache=cache),
        lambda: config.set_timing_cache(b"", False),
        lambda: fake.make("IExecutionContext").execute_async_v3(),
        lambda: fake.make("IExecutionContext").execute_async_v3(stream=1),
        lambda: fake.make("IExecutionContext").set_tensor_address(0, 0),
        lambda: fake.make("IOptimizationProfile").set_shape("images", (1,), (1,)),
        lambda: fake.trt.Builder(),
    ]
    for call in wrong:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()


def test_a_logger_that_forgets_its_base_is_caught(fake: Fake):
    class Forgetful(fake.trt.ILogger):
        def __init__(self) -> None: ...

    with pytest.raises(TypeError, match="incompatible function arguments"):
        fake.trt.Builder(Forgetful())


def test_a_call_without_life_is_caught(fake: Fake):
    with pytest.raises(NotImplementedError, match=r"IBuilderConfig\.reset"):
        fake.make("IBuilderConfig").reset()


@pytest.mark.parametrize("version", ["10.3", "10.16"])
def test_ten_still_has_what_went(surfaces: dict[str, Any], version: str):
    """So that the refusals above are the version's, and not the stand-in's."""
    ten = stand_in(surfaces[version])
    assert int(ten.trt.BuilderFlag.INT8) == 1
    assert ten.trt.IInt8MinMaxCalibrator.get_batch
    ten.make("IBuilderConfig").int8_calibrator = None
