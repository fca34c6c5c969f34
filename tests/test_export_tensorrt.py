"""Promise: one builder source for TensorRT 10.3 to 11, and a clear word where there is none.

The stand-in has only members that TensorRT 10.3 and 11.4 share; any other name raises.
"""

import sys
import types
from enum import IntEnum
from pathlib import Path

import pytest
from exported_net import SHAPE, Exported

from advprune.errors import BadData, CannotCreate, Incompatible, NotFound
from export import graph
from export.patterns import groups_of_four
from export.to_tensorrt import Built, Skipped, build_engine

pytest_plugins = ["export_fixtures"]


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class ParserError:
    def node_operator(self) -> str:
        return "QuantizeLinear"

    def node_name(self) -> str:
        return "relu_quantize"

    def desc(self) -> str:
        return "scale must be positive"


class TensorRT(types.ModuleType):
    """A strict stand-in for one version, which records what it was asked."""

    def __init__(self, version: str, strongly_typed: int) -> None:
        super().__init__("tensorrt")
        fake = self
        self.__version__ = version
        self.calls: dict = {}
        self.can_build = self.can_parse = self.can_finish = self.cache_fits = True

        class Flag(IntEnum):
            STRONGLY_TYPED = strongly_typed

        class BuilderFlag(IntEnum):
            TF32 = 7
            SPARSE_WEIGHTS = 8

        class Cache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> bytearray:
                return bytearray(self.data + b"+timings")

        class Config:
            def clear_flag(self, flag: BuilderFlag) -> None:
                fake.calls["cleared"] = flag

            def set_flag(self, flag: BuilderFlag) -> None:
                fake.calls["set"] = flag

            def add_optimization_profile(self, profile: "Profile") -> int:
                fake.calls["profile"] = profile.shapes
                return 0 if profile.shapes[0] == "images" else -1

            def create_timing_cache(self, serialized_timing_cache: bytes) -> Cache:
                return Cache(serialized_timing_cache)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                assert ignore_mismatch is False
                self.cache = cache
                return fake.cache_fits or not cache.data

            def get_timing_cache(self) -> Cache:
                return self.cache

        class Profile:
            # The real one takes `input, min, opt, max` under these names.
            def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
                self.shapes = (input, min, opt, max)

        class Network:
            def get_input(self, index: int) -> types.SimpleNamespace:
                assert index == 0
                return types.SimpleNamespace(name="images")

        class Builder:
            def __init__(self, logger: ILogger) -> None:
                assert isinstance(logger, ILogger) and logger.ready
                self.logger = logger
                if not fake.can_build:
                    logger.log(Severity.WARNING, "chatter")
                    logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def create_network(self, flags: int = 0) -> Network:
                fake.calls["flags"] = flags
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config):
                if not fake.can_finish:
                    self.logger.log(Severity.ERROR, "no implementation for node Conv_0")
                    return None
                return bytearray(b"engine")

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Network, logger: ILogger) -> None: ...

            def parse(self, model: bytes) -> bool:
                fake.calls["bytes"] = model
                return fake.can_parse

            def get_error(self, index: int) -> ParserError:
                assert index == 0
                return ParserError()

        self.ILogger, self.Builder, self.OnnxParser = ILogger, Builder, OnnxParser
        self.NetworkDefinitionCreationFlag, self.BuilderFlag = Flag, BuilderFlag


@pytest.fixture(params=[("10.3.0", 1), ("11.4.0", 0)], ids=["10.3", "11.4"])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    fake = TensorRT(*request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def test_engine_is_built_for_its_batches(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out = tmp_path / "int8.plan"
    built = build_engine(exported.int8, out, SHAPE, 32)
    assert built == Built(out, tmp_path / "int8.plan.timing", tensorrt.__version__)
    assert out.read_bytes() == b"engine"
    calls = tensorrt.calls
    assert calls["flags"] == 1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert calls["cleared"] is tensorrt.BuilderFlag.TF32
    assert calls["profile"] == ("images", (1, *SHAPE), (1, *SHAPE), (32, *SHAPE))
    assert calls["bytes"] == exported.int8.read_bytes()


def test_sparse_kernels_are_asked_for_where_the_file_is_2_to_4(
    exported: Exported, tensorrt: TensorRT, tmp_path: Path
):
    build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, 8)
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
    build_engine(sparse, tmp_path / "sparse.plan", SHAPE, 8)
    assert tensorrt.calls.pop("set") is tensorrt.BuilderFlag.SPARSE_WEIGHTS
    # One group with three non-zeros, in the last of the layers.
    pruned[last][0, :4] = 1, 1, 1, 0
    graph.put_constants(model, pruned)
    graph.save(model, broken)
    build_engine(broken, tmp_path / "broken.plan", SHAPE, 8)
    assert "set" not in tensorrt.calls


def test_timings_are_kept_and_used_again(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out, cache = tmp_path / "int8.plan", tmp_path / "int8.plan.timing"
    build_engine(exported.int8, out, SHAPE, 8)
    assert cache.read_bytes() == b"+timings"
    build_engine(exported.int8, out, SHAPE, 8)
    assert cache.read_bytes() == b"+timings+timings"
    tensorrt.cache_fits = False
    build_engine(exported.int8, out, SHAPE, 8)
    assert cache.read_bytes() == b"+timings"


def test_what_tensorrt_refuses_is_told(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out = tmp_path / "int8.plan"
    tensorrt.can_parse = False
    with pytest.raises(
        Incompatible, match=r"cannot read it .QuantizeLinear relu_quantize: scale must be positive"
    ):
        build_engine(exported.int8, out, SHAPE, 8)
    tensorrt.can_parse, tensorrt.can_finish = True, False
    with pytest.raises(Incompatible, match=r"built nothing .no implementation for node Conv_0"):
        build_engine(exported.int8, out, SHAPE, 8)
    assert not out.exists()
    tensorrt.can_finish = True
    with pytest.raises(CannotCreate):
        build_engine(exported.int8, tmp_path / "none" / "int8.plan", SHAPE, 8)


def test_machine_without_gpu_is_skipped(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    tensorrt.can_build = False
    result = build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, 8)
    assert isinstance(result, Skipped)
    assert "CUDA initialization failure" in result.reason and "chatter" not in result.reason
    assert "pip install 'tensorrt>=10.3'" in result.reason


def test_machine_without_tensorrt_is_skipped(exported: Exported, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = build_engine(exported.int8, tmp_path / "int8.plan", SHAPE, 8)
    assert isinstance(result, Skipped)
    assert "cannot be imported" in result.reason
    assert "pip install 'tensorrt>=10.3'" in result.reason
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_refused_even_without_tensorrt(exported: Exported, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "out.plan"
    with pytest.raises(Incompatible, match=r"uint8.* codes"):
        build_engine(exported.x86, out, SHAPE, 8)
    with pytest.raises(Incompatible, match="max_batch must be at least 1, got 0"):
        build_engine(exported.int8, out, SHAPE, 0)
    with pytest.raises(NotFound):
        build_engine(tmp_path / "none.onnx", out, SHAPE, 8)
    (tmp_path / "text.onnx").write_bytes(b"no model")
    with pytest.raises(BadData):
        build_engine(tmp_path / "text.onnx", out, SHAPE, 8)
