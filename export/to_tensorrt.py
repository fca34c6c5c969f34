"""A TensorRT engine from an ONNX graph, on the machine that will run it.

Precision lies in the graph: 8-bit layers are those between Quantize and Dequantize, so one source
serves TensorRT 10.3 to 11, and only names that all of them have are used. An engine fits one
TensorRT version and one GPU, unless it is built to fit more: ship the ONNX file and build there.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advprune.errors import CannotCreate, Incompatible
from export import graph
from export.engine_card import BuildOptions, Gpu, card_path, make_card
from export.patterns import has_two_in_four

_INSTALL = "type: pip install 'tensorrt>=10.3' (on a Jetson, JetPack brings it)"


@dataclass(frozen=True)
class Built:
    """An engine, its card, and the kernel timings that make the next build fast and alike."""

    path: Path
    card: Path
    timing_cache: Path
    version: str


@dataclass(frozen=True)
class Skipped:
    """Why this machine cannot build engines, and what would change that."""

    reason: str


def build_engine(
    onnx_path: Path, out_path: Path, shape: tuple[int, int, int], options: BuildOptions, gpu: Gpu
) -> Built | Skipped:
    """Build an engine for batches of 1 to `options.max_batch`, and write its card beside it.

    The timing cache `out_path` + ".timing" is read if it exists and written in any case. TF32 is
    off, so that float layers agree with ONNX Runtime. Sparse kernels are tried where every weight
    that could be 2:4 is.

    Args:
        onnx_path: a float graph, or a quantised one in the TensorRT form.
        out_path: the engine file to write.
        shape: of one image as the graph takes it, (C, H, W).
        options: batches, and which other machines it must run on.
        gpu: the one that this thread computes on, for the card.

    Raises:
        NotFound, BadData: the graph is missing or not valid.
        Incompatible: TensorRT does not accept the graph, or it is the x86 form.
        CannotCreate: a file cannot be written.
    """
    if not 1 <= options.optimal_batch <= options.max_batch:
        raise Incompatible(
            f"tensorrt: need 1 <= optimal_batch <= max_batch, got optimal_batch "
            f"{options.optimal_batch} and max_batch {options.max_batch}"
        )
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
    onnx_bytes = onnx_path.read_bytes()
    network = _parse(trt, builder, logger, onnx_bytes, onnx_path)
    config = _configure(trt, builder, network.get_input(0).name, shape, options)
    if has_two_in_four(onnx_path):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    cache = out_path.with_name(f"{out_path.name}.timing")
    _start_timings(config, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = "; ".join(messages) or "no reason logged"
        raise Incompatible(f"{onnx_path}: TensorRT {trt.__version__} built nothing ({reason})")
    plan = bytes(engine)
    card = make_card(
        plan,
        onnx_bytes,
        model,
        tensorrt=trt.__version__,
        gpu=gpu,
        options=options,
        inspection=_inspect(trt, logger, messages, plan, options),
    )
    _write(out_path, plan)
    _write(cache, bytes(config.get_timing_cache().serialize()))
    _write(card_path(out_path), card)
    return Built(out_path, card_path(out_path), cache, trt.__version__)


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
    trt: Any, builder: Any, input_name: str, shape: tuple[int, int, int], options: BuildOptions
) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    # Without it the inspector knows names only, and "int8" would be taken on trust.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    profile = builder.create_optimization_profile()
    batches = (1, options.optimal_batch, options.max_batch)
    profile.set_shape(input_name, *((batch, *shape) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise Incompatible(f"tensorrt: images of {shape} do not fit the graph's input")
    return config


def _inspect(trt: Any, logger: Any, messages: list[str], plan: bytes, options: BuildOptions) -> str:
    """What the finished engine says of its layers, in JSON; also the first proof that it opens."""
    runtime = trt.Runtime(logger)
    # Such an engine carries a runtime, which is host code; this one was built a moment ago, here.
    if options.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = "; ".join(messages) or "no reason logged"
        raise Incompatible(
            f"tensorrt: TensorRT {trt.__version__} does not open what it built ({reason})"
        )
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


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
