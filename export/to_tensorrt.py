"""A TensorRT engine from an ONNX graph, on the machine that will run it.

Precision lies in the graph: 8-bit layers are those between Quantize and Dequantize, so one source
serves TensorRT 10.3 to 11, and only names that all of them have are used. An engine fits one
TensorRT version and one GPU: ship the ONNX file and build there.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advprune.errors import CannotCreate, Incompatible
from export import graph
from export.patterns import has_two_in_four

_INSTALL = "type: pip install 'tensorrt>=10.3' (on a Jetson, JetPack brings it)"


@dataclass(frozen=True)
class Built:
    """An engine, and the kernel timings that make the next build fast and alike."""

    path: Path
    timing_cache: Path
    version: str


@dataclass(frozen=True)
class Skipped:
    """Why this machine cannot build engines, and what would change that."""

    reason: str


def build_engine(
    onnx_path: Path, out_path: Path, shape: tuple[int, int, int], max_batch: int
) -> Built | Skipped:
    """Build an engine for batches of 1 to `max_batch`, tuned for 1.

    The timing cache `out_path` + ".timing" is read if it exists and written in any case. TF32 is
    off, so that float layers agree with ONNX Runtime. Sparse kernels are tried where every weight
    that could be 2:4 is.

    Args:
        onnx_path: a float graph, or a quantised one in the TensorRT form.
        out_path: the engine file to write.
        shape: of one image as the graph takes it, (C, H, W).
        max_batch: largest batch that the engine will take, at least 1.

    Raises:
        NotFound, BadData: the graph is missing or not valid.
        Incompatible: TensorRT does not accept the graph, or it is the x86 form.
        CannotCreate: a file cannot be written.
    """
    if max_batch < 1:
        raise Incompatible(f"tensorrt: max_batch must be at least 1, got {max_batch}")
    model = graph.load(onnx_path)
    if types := graph.activation_types(model) - {"int8"}:
        raise Incompatible(f"{onnx_path}: {types} codes; give TensorRT the graph of quantize()")
    try:
        trt: Any = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        return Skipped(f"tensorrt cannot be imported ({error}); {_INSTALL}")
    logger, messages = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        reason = "; ".join(messages) or str(error)
        return Skipped(
            f"TensorRT {trt.__version__} cannot build here ({reason}); "
            f"it needs an NVIDIA GPU, its driver and libnvinfer: {_INSTALL}"
        )
    network = _parse(trt, builder, logger, model.SerializeToString(), onnx_path)
    config = _configure(trt, builder, network.get_input(0).name, shape, max_batch)
    if has_two_in_four(onnx_path):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    cache = out_path.with_name(f"{out_path.name}.timing")
    _start_timings(config, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = "; ".join(messages) or "no reason logged"
        raise Incompatible(f"{onnx_path}: TensorRT {trt.__version__} built nothing ({reason})")
    _write(out_path, bytes(engine))
    _write(cache, bytes(config.get_timing_cache().serialize()))
    return Built(out_path, cache, trt.__version__)


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors for our message instead of printing everything."""
    messages: list[str] = []

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Errors(), messages


def _parse(trt: Any, builder: Any, logger: Any, data: bytes, origin: Path) -> Any:
    # The flag's value differs between 10 and 11, and 11 types every network strongly.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(
            f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors
        )
        raise Incompatible(f"{origin}: TensorRT {trt.__version__} cannot read it ({reasons})")
    return network


def _configure(
    trt: Any, builder: Any, input_name: str, shape: tuple[int, int, int], max_batch: int
) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(input_name, (1, *shape), (1, *shape), (max_batch, *shape))
    if config.add_optimization_profile(profile) < 0:
        raise Incompatible(f"tensorrt: images of {shape} do not fit the graph's input")
    return config


def _start_timings(config: Any, cache: Path) -> None:
    stored = cache.read_bytes() if cache.exists() else b""
    # Timings of another GPU or version are refused; then all kernels are timed afresh.
    if not config.set_timing_cache(config.create_timing_cache(stored), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CannotCreate(f"{path}: {error.strerror}; is its folder writable?") from error
