"""A stand-in for what of TensorRT builds engines, with the members that 10.3 and 11.4 share.

Any other name raises. What the bindings really have is held against the same source by
`test_tensorrt_contract.py`.
"""

import json
import types
from enum import IntEnum
from typing import NamedTuple

from exported_net import CLASSES, SHAPE


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5
    INT32 = 3


class LayerType(IntEnum):
    CONVOLUTION = 0
    DEQUANTIZE = 41


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: DataType


class Layer(NamedTuple):
    type: LayerType
    dtype: DataType

    def get_output(self, index: int) -> Tensor:
        assert index == 0
        return Tensor("inner", (), self.dtype)


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
        self.can_open = True
        self.inputs = [Tensor("images", (-1, *SHAPE), DataType.FLOAT)]
        self.outputs = [Tensor("logits", (-1, CLASSES), DataType.FLOAT)]
        self.layers = [Layer(kind, DataType.FLOAT) for kind in LayerType]

        class Flag(IntEnum):
            STRONGLY_TYPED = strongly_typed

        class BuilderFlag(IntEnum):
            TF32 = 7
            SPARSE_WEIGHTS = 8
            VERSION_COMPATIBLE = 12

        class ProfilingVerbosity(IntEnum):
            DETAILED = 2

        class HardwareCompatibilityLevel(IntEnum):
            AMPERE_PLUS = 1

        class LayerInformationFormat(IntEnum):
            JSON = 1

        class Cache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> bytearray:
                return bytearray(self.data + b"+timings")

        class Config:
            __slots__ = ("cache", "hardware_compatibility_level", "profiling_verbosity")

            def clear_flag(self, flag: BuilderFlag) -> None:
                fake.calls["cleared"] = flag

            def set_flag(self, flag: BuilderFlag) -> None:
                fake.calls.setdefault("set", []).append(flag)

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
            def get_input(self, index: int) -> Tensor:
                return fake.inputs[index]

            def get_output(self, index: int) -> Tensor:
                return fake.outputs[index]

            def get_layer(self, index: int) -> Layer:
                return fake.layers[index]

            @property
            def num_inputs(self) -> int:
                return len(fake.inputs)

            @property
            def num_outputs(self) -> int:
                return len(fake.outputs)

            @property
            def num_layers(self) -> int:
                return len(fake.layers)

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
                fake.calls["config"] = config
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

        class Inspector:
            def get_engine_information(self, format: LayerInformationFormat) -> str:
                assert format is LayerInformationFormat.JSON
                return json.dumps({"Layers": [{"Weights": {"Type": "Int8"}}, "softmax"]})

        class Engine:
            def create_engine_inspector(self) -> Inspector:
                return Inspector()

        class Runtime:
            __slots__ = ("engine_host_code_allowed", "logger")

            def __init__(self, logger: ILogger) -> None:
                self.logger, self.engine_host_code_allowed = logger, False

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                assert serialized_engine == b"engine"
                fake.calls["host code"] = self.engine_host_code_allowed
                if not fake.can_open:
                    self.logger.log(Severity.ERROR, "out of memory")
                    return None
                return Engine()

        self.ILogger, self.Builder, self.OnnxParser = ILogger, Builder, OnnxParser
        self.Runtime, self.LayerInformationFormat = Runtime, LayerInformationFormat
        self.NetworkDefinitionCreationFlag, self.BuilderFlag = Flag, BuilderFlag
        self.ProfilingVerbosity = ProfilingVerbosity
        self.DataType, self.LayerType = DataType, LayerType
        self.HardwareCompatibilityLevel = HardwareCompatibilityLevel
