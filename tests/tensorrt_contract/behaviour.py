"""Life for the strict `tensorrt`: it accepts any graph, and its engine averages each channel.

A plan is text that says what was asked of the builder, so that what comes out of a runtime can be
held against what went into a builder. Addresses are those of host memory, and an engine really
reads and writes there.
"""

import ctypes
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from tensorrt_contract.strict import Behaviour, new

_TYPES = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}


class Life:
    """What happens behind the calls, and what was seen of them."""

    def __init__(self, trt: Any, behaviour: Behaviour) -> None:
        """Give `trt` its behaviour.

        Args:
            trt: a strict module.
            behaviour: that it was made with.
        """
        self.trt = trt
        self.seen: dict[str, Any] = {"flags": []}
        for name in vars(Life):
            # Builder_create_network is what Builder.create_network does.
            if name[0].isupper():
                kind, _, member = name.partition("_")
                behaviour[f"{kind}.{member}"] = getattr(self, name)

    # Building.

    def Builder_create_network(self, builder: Any, flags: int = 0) -> Any:
        self.seen["network"] = flags
        return new(self.trt.INetworkDefinition)

    def Builder_create_builder_config(self, builder: Any) -> Any:
        return new(self.trt.IBuilderConfig)

    def Builder_create_optimization_profile(self, builder: Any) -> Any:
        return new(self.trt.IOptimizationProfile)

    def Builder_build_serialized_network(self, builder: Any, network: Any, config: Any) -> Any:
        self.seen["config"] = config.state
        plan = {**network.state["ends"], "profile": config.state["profile"]}
        return new(self.trt.IHostMemory, bytes=json.dumps(plan).encode())

    def OnnxParser_parse(self, parser: Any, model: bytes) -> bool:
        graph = ModelProto.FromString(model).graph
        parser.state["network"].state.update(
            num_inputs=len(graph.input),
            num_outputs=len(graph.output),
            num_layers=len(graph.node),
            operators=[node.op_type for node in graph.node],
        )
        ends = {"input": graph.input[0], "output": graph.output[0]}
        parser.state["network"].state["ends"] = {
            name: {
                "name": end.name,
                "shape": [dim.dim_value or -1 for dim in end.type.tensor_type.shape.dim],
                "type": helper.tensor_dtype_to_np_dtype(end.type.tensor_type.elem_type).name,
            }
            for name, end in ends.items()
        }
        return True

    def INetworkDefinition_get_input(self, network: Any, index: int) -> Any:
        return self._tensor(network.state["ends"]["input"])

    def INetworkDefinition_get_output(self, network: Any, index: int) -> Any:
        return self._tensor(network.state["ends"]["output"])

    def INetworkDefinition_get_layer(self, network: Any, index: int) -> Any:
        is_dequantise = network.state["operators"][index] == "DequantizeLinear"
        kinds = self.trt.LayerType
        return new(self.trt.ILayer, type=kinds.DEQUANTIZE if is_dequantise else kinds.CONVOLUTION)

    def ILayer_get_output(self, layer: Any, index: int) -> Any:
        return new(self.trt.ITensor, dtype=self.trt.DataType.FLOAT)

    def _tensor(self, end: dict[str, Any]) -> Any:
        kind = getattr(self.trt.DataType, _TYPES[end["type"]])
        return new(self.trt.ITensor, name=end["name"], shape=end["shape"], dtype=kind)

    def IBuilderConfig_set_flag(self, config: Any, flag: Any) -> None:
        self.seen["flags"].append(flag.name)

    def IBuilderConfig_clear_flag(self, config: Any, flag: Any) -> None:
        self.seen["flags"].append(f"no {flag.name}")

    def IBuilderConfig_add_optimization_profile(self, config: Any, profile: Any) -> int:
        config.state["profile"] = profile.state["shapes"]
        return 0

    def IBuilderConfig_create_timing_cache(
        self, config: Any, serialized_timing_cache: bytes
    ) -> Any:
        return new(self.trt.ITimingCache, bytes=serialized_timing_cache)

    def IBuilderConfig_set_timing_cache(
        self, config: Any, cache: Any, ignore_mismatch: bool
    ) -> bool:
        config.state["cache"] = cache
        return True

    def IBuilderConfig_get_timing_cache(self, config: Any) -> Any:
        return config.state["cache"]

    def ITimingCache_serialize(self, cache: Any) -> Any:
        return new(self.trt.IHostMemory, bytes=cache.state["bytes"] + b"+timings")

    def IOptimizationProfile_set_shape(self, profile: Any, input: str, **shapes: Any) -> None:
        profile.state["shapes"] = [list(shapes[name]) for name in ("min", "opt", "max")]

    # Running.

    def Runtime_deserialize_cuda_engine(self, runtime: Any, serialized_engine: bytes) -> Any:
        self.seen["host code"] = runtime.state.get("engine_host_code_allowed", False)
        content = json.loads(serialized_engine)
        ends = {content[side]["name"]: content[side] for side in ("input", "output")}
        return new(self.trt.ICudaEngine, ends=ends, profile=content["profile"])

    def ICudaEngine_num_io_tensors(self, engine: Any) -> int:
        return len(engine.state["ends"])

    def ICudaEngine_get_tensor_name(self, engine: Any, index: int) -> str:
        return list(engine.state["ends"])[index]

    def ICudaEngine_get_tensor_mode(self, engine: Any, name: str) -> Any:
        modes = self.trt.TensorIOMode.INPUT, self.trt.TensorIOMode.OUTPUT
        return modes[list(engine.state["ends"]).index(name)]

    def ICudaEngine_get_tensor_dtype(self, engine: Any, name: str) -> Any:
        return getattr(self.trt.DataType, _TYPES[engine.state["ends"][name]["type"]])

    def ICudaEngine_get_tensor_shape(self, engine: Any, name: str) -> Any:
        return self.trt.Dims(engine.state["ends"][name]["shape"])

    def ICudaEngine_get_tensor_profile_shape(
        self, engine: Any, name: str, profile_index: int
    ) -> list[Any]:
        assert profile_index == 0
        return [self.trt.Dims(shape) for shape in engine.state["profile"]]

    def ICudaEngine_create_engine_inspector(self, engine: Any) -> Any:
        return new(self.trt.EngineInspector)

    def EngineInspector_get_engine_information(self, inspector: Any, format: Any) -> str:
        assert format == self.trt.LayerInformationFormat.JSON
        return json.dumps({"Layers": [{"Name": "conv", "Weights": {"Type": "Int8"}}]})

    def ICudaEngine_create_execution_context(self, engine: Any) -> Any:
        return new(self.trt.IExecutionContext, engine=engine, address={}, stream=None)

    def IExecutionContext_set_tensor_address(self, context: Any, name: str, memory: int) -> bool:
        context.state["address"][name] = memory
        return name in context.state["engine"].state["ends"]

    def IExecutionContext_set_input_shape(self, context: Any, name: str, shape: Any) -> bool:
        context.state["shape"] = shape
        return shape[0] <= context.state["engine"].state["profile"][2][0]

    def IExecutionContext_execute_async_v3(self, context: Any, stream_handle: int) -> bool:
        self.seen["stream"] = stream_handle
        entry, result = context.state["engine"].state["ends"].values()
        images = _memory(context.state["address"][entry["name"]], context.state["shape"], entry)
        shape = (len(images), result["shape"][-1])
        logits = _memory(context.state["address"][result["name"]], shape, result)
        logits[:] = averages(images, shape[1])
        return True

    def Dims___len__(self, dims: Any) -> int:
        return len(dims.state["shape"])

    def Dims___getitem__(self, dims: Any, arg0: int) -> int:
        return dims.state["shape"][arg0]


def averages(images: NDArray[Any], classes: int) -> NDArray[np.float32]:
    """Logits of a made-up network: class k averages channel k modulo the channels, times k + 1."""
    channels = images.mean(axis=(2, 3), dtype=np.float32)
    chosen = np.arange(classes)
    return channels[:, chosen % images.shape[1]] * (chosen + 1).astype(np.float32)


def _memory(address: int, shape: tuple[int, ...], end: dict[str, Any]) -> NDArray[Any]:
    """The array that lies at an address."""
    kind = np.dtype(end["type"])
    size = int(np.prod(shape)) * kind.itemsize
    there = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    return np.frombuffer(there, kind).reshape(shape)
